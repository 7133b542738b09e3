"""The template of a model that knows no turns.

Models to talk to, by path: weights, tokenizer, template, and what becomes of images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from mmjax.chat.hf_assets import end_tokens, find_tokenizer, image_loader, named_tokenizer
from mmjax.data.examples import Continuation, Special, Template, Text, Turn, joined, without_loss
from mmjax.data.images.decode import load_image
from mmjax.data.text.templates import CHAT, find_template
from mmjax.data.text.tokenizer import HuggingFaceTokenizer, Tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models.config import LanguageModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.recipe.recipe import LlavaSource
from mmjax.runs import saved
from mmjax.runs.workdir import Workdir
from mmjax.typing import Params
from mmjax.weights.load import open_pretrained
from mmjax.weights.pretrained_protocol import stored
from mmjax.weights.save import writable, writable_params


class PlainTemplate(Template):
    """Texts as they stand, one behind the other; the model goes on with them. bos stands before them where the model has one of its own,
    and not only a token that separates texts."""

    def __init__(self, tokenizer: Tokenizer):
        self._begins = tokenizer.bos != tokenizer.eos

    def question(self, question: str, answer: str) -> Continuation:
        return (*self.prompt(question), Text(answer, loss=True), Special("eos", loss=True))

    def prompt(self, question: str) -> Continuation:
        return self.conversation([Turn("user", (Text(question),))])

    def conversation(self, turns: Sequence[Turn]) -> Continuation:
        if any(turn.role == "system" for turn in turns):
            raise InputError(
                "There is no chat template, so that nothing can be said as the system; put it before the text."
            )
        begin = (Special("bos"),) if self._begins else ()
        return joined((*begin, *(part for turn in turns for part in without_loss(turn.content))))


Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class ChatModel:
    """A model to talk to.

    Attributes:
        params: of `config`.
        ends: tokens that end an answer.
        load_image: the pixels [h, w, 3] uint8 of an image file as the encoder wants them; raises SampleError.
        images_first: whether images stand before the whole text; else they stand in the turn of the user, and a line feed after them.
        notes: what the user should know.
    """

    config: LanguageModelConfig | VLMConfig
    params: Params
    tokenizer: Tokenizer
    template: Template
    ends: frozenset[int]
    load_image: Callable[[Path], np.ndarray]
    images_first: bool = False
    notes: tuple[str, ...] = ()


def open_chat(
    checkpoint: str,
    *,
    tokenizer: str | None = None,
    template: str | None = None,
    dtype: Dtype = "float32",
    sees: bool = False,
) -> ChatModel:
    """Opens a model.

    Args:
        checkpoint: a folder of transformers, a GGUF file, a folder that mmjax wrote, a checkpoint of a run, or the folder of a run, whose
            newest is meant. "fetched:NAME" is what `python -m mmjax.fetch NAME` has brought.
        tokenizer: where it is, if not beside the weights.
        template: its name, if not the one that comes with the tokenizer or that the run was trained with.
        dtype: "float32" or "bfloat16", as in `load_pretrained`.
        sees: whether it has to have an encoder, for images.

    Raises:
        InputError: the model cannot be read, is an encoder alone or a decoder without one that is needed, or has no tokenizer.
    """
    path = resolved(checkpoint)
    given = None if tokenizer is None else named_tokenizer(resolved(tokenizer))
    if _is_run(path):
        return _open_run(path, given, template, dtype)
    return _open_published(path, given, template, dtype, sees)


def _is_run(path: Path) -> bool:
    """Whether a path is the folder of a run, or a checkpoint in one: <workdir>/checkpoints/<stage>/<step>."""
    above = path.absolute().parents
    return (path / "checkpoints").is_dir() or (
        path.name.isdecimal() and len(above) > 2 and above[1].name == "checkpoints"
    )


def _open_run(
    path: Path, tokenizer: Tokenizer | None, template: str | None, dtype: Dtype
) -> ChatModel:
    whole = (path / "checkpoints").is_dir()
    workdir = Workdir(path if whole else path.absolute().parents[2])
    own, recipe = saved.prepare_tokenizer(workdir.recipe(), workdir.path, build=False)
    stage, folder = saved.find_checkpoint(recipe, workdir, None if whole else str(path))
    tokenizer = tokenizer or own
    name = template or stage.data.template
    form = find_template(
        name, tokenizer, labels=name == stage.data.template
    )  # as it was trained: cut where the loss began
    config = writable(stage.model)
    assert isinstance(config, VLMConfig)
    params = writable_params(saved.read_params(folder, recipe), stage.model)
    for name, shape in stored(config, params, jnp.dtype(dtype)).items():
        params[name] = params[name].astype(shape.dtype)
    return ChatModel(
        dataclasses.replace(config, compute_dtype=dtype),
        params,
        tokenizer,
        form,
        _ends(form, tokenizer, ()),
        lambda source: load_image(source, config.vision.image_size, resize=stage.data.resize),
        not any(isinstance(source, LlavaSource) for source in stage.data.sources.values()),
    )


def _open_published(
    path: Path, tokenizer: Tokenizer | None, template: str | None, dtype: Dtype, sees: bool
) -> ChatModel:
    with open_pretrained(path) as opened:
        if isinstance(opened.config, VisionEncoderConfig):
            raise InputError(
                f"{path} is a vision encoder alone, which does not speak. A decoder or a whole model is needed."
            )
        if sees and not isinstance(opened.config, VLMConfig):
            raise InputError(f"{path} is a decoder without an encoder: it cannot look at images.")
        config = dataclasses.replace(opened.config, compute_dtype=dtype)
        tokenizer = tokenizer or find_tokenizer(path)
        form, notes = _find_template(template, tokenizer)
        load, more = image_loader(path, config)
        ends = _ends(form, tokenizer, end_tokens(path))
        params = opened.read(dtype=jnp.dtype(dtype))
    return ChatModel(config, params, tokenizer, form, ends, load, notes=notes + more)


def _find_template(name: str | None, tokenizer: Tokenizer) -> tuple[Template, tuple[str, ...]]:
    if name is not None:
        return find_template(name, tokenizer, labels=False), ()
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.chat_template is not None:
        return find_template(CHAT, tokenizer, labels=False), ()
    return PlainTemplate(tokenizer), (
        "There is no chat template: texts are continued as they stand. --template=NAME names one.",
    )


def _ends(template: Template, tokenizer: Tokenizer, more: Sequence[int]) -> frozenset[int]:
    stop = tokenizer.eos if template.stop == "eos" else tokenizer.special(template.stop)
    return frozenset({tokenizer.eos, stop, *more})
