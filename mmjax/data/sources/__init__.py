"""Sources of examples: `open_source` turns a source's config into one."""

from mmjax.data.sources.base import Part, Source
from mmjax.data.sources.easy_vqa import EasyVqa
from mmjax.data.sources.jsonl import Jsonl
from mmjax.data.sources.llava import Llava
from mmjax.data.sources.tfds import Tfds
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import Tokenizer
from mmjax.recipe.recipe import EasyVqaSource, JsonlSource, LlavaSource, SourceConfig, TfdsSource

__all__ = ["Part", "Source", "open_source"]


def open_source(
    config: SourceConfig,
    *,
    holdout: int = 0,
    part: Part = "train",
    template: str = "plain",
    tokenizer: Tokenizer | None = None,
) -> Source:
    """Opens a source.

    Args:
        config: which source.
        holdout: examples that are kept from training: those at its end, or as the config says.
        part: "train": all but those; "holdout": those alone.
        template: how its captions, questions and conversations become text (names in mmjax.data.text.templates).
        tokenizer: of the model, which may bring a template along.

    Raises:
        InputError: a file, folder or package is missing, or the config asks for what the data do not have.
    """
    chosen = find_template(template, tokenizer)
    match config:
        case EasyVqaSource():
            return EasyVqa(config, chosen, holdout=holdout, part=part)
        case JsonlSource():
            return Jsonl(config, chosen, holdout=holdout, part=part)
        case LlavaSource():
            return Llava(config, chosen, holdout=holdout, part=part)
        case TfdsSource():
            return Tfds(config, chosen, holdout=holdout, part=part)
