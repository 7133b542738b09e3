"""Opens a model to talk to: weights, tokenizer, template, and how images are prepared for it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from mmjax.chat.hf_assets import (
    end_tokens,
    find_tokenizer,
    image_loader,
    named_tokenizer,
    unread_settings,
)
from mmjax.data.examples import Continuation, Special, Template, Text, Turn, joined, without_loss
from mmjax.data.images.decode import load_image
from mmjax.data.text.templates import CHAT, find_template
from mmjax.data.text.tokenizer import HuggingFaceTokenizer, Tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models.config import LanguageModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.runs.origins import began_as, generation_of
from mmjax.runs.workdir import Workdir, read_params
from mmjax.typing import Params
from mmjax.weights import generation
from mmjax.weights.export_form import export_config, export_params
from mmjax.weights.families.base import ConfigJson
from mmjax.weights.load import open_pretrained
from mmjax.weights.pretrained_protocol import stored


class PlainTemplate(Template):
    """The template of a model without a chat template: texts as they stand, one behind the other, which the model continues.

    bos stands before them where the model has one of its own, and not only a token that separates texts.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._begins = tokenizer.has_bos and tokenizer.bos != tokenizer.eos

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
    needs_encoder: bool = False,
) -> ChatModel:
    """Opens a model.

    Args:
        checkpoint: a folder of transformers, a GGUF file, a folder that mmjax wrote, a checkpoint of a run, or the folder of a run, whose
            newest is meant. "fetched:NAME" is what `python -m mmjax.fetch NAME` has brought,
            "hf:OWNER/NAME" a model of the Hugging Face Hub.
        tokenizer: where it is, if not beside the weights.
        template: its name, if not the one that comes with the tokenizer or that the run was trained with.
        dtype: "float32" or "bfloat16", as in `load_pretrained`.
        needs_encoder: refuse a decoder without one, which cannot look at images.

    Raises:
        InputError: the model cannot be read, is an encoder alone or a decoder without one that is needed, or has no tokenizer.
    """
    path = resolved(checkpoint)
    named = None if tokenizer is None else named_tokenizer(resolved(tokenizer, weights=False))
    if (path / "checkpoints").is_dir():
        return _open_run(path, None, named, template, dtype)
    above = path.absolute().parents  # of a checkpoint: <workdir>/checkpoints/<stage>/<step>
    if path.name.isdecimal() and len(above) > 2 and above[1].name == "checkpoints":
        return _open_run(above[2], str(path), named, template, dtype)
    return _open_published(path, named, template, dtype, needs_encoder)


def _open_run(
    path: Path,
    checkpoint: str | None,
    tokenizer: Tokenizer | None,
    template: str | None,
    dtype: Dtype,
) -> ChatModel:
    workdir = Workdir(path)
    recipe, own = workdir.resolve(workdir.recipe())
    stage, folder = workdir.find_checkpoint(recipe, checkpoint)
    tokenizer = tokenizer or own
    name = template or stage.data.template
    # The template of the training with its labels, so that prompts are cut where the loss began.
    form = find_template(name, tokenizer, labels=name == stage.data.template)
    ends = _end_tokens(form, tokenizer)
    if workdir.origins.exists() and tokenizer is own:
        settings = generation_of(stage, own, began_as(recipe, workdir, stage.name))
        ends |= set(generation.end_tokens(ConfigJson(settings, str(workdir.origins))))
    config = export_config(stage.model)
    assert isinstance(config, VLMConfig)
    params = export_params(read_params(folder, recipe), stage.model)
    for name, shape in stored(config, params, jnp.dtype(dtype)).items():
        params[name] = params[name].astype(shape.dtype)
    return ChatModel(
        dataclasses.replace(config, compute_dtype=dtype),
        params,
        tokenizer,
        form,
        ends,
        lambda source: load_image(source, config.vision.image_size, resize=stage.data.resize),
        images_first=not any(source.conversations for source in stage.data.sources.values()),
    )


def _open_published(
    path: Path, tokenizer: Tokenizer | None, template: str | None, dtype: Dtype, needs_encoder: bool
) -> ChatModel:
    with open_pretrained(path) as opened:
        if isinstance(opened.config, VisionEncoderConfig):
            raise InputError(
                f"{path} is a vision encoder alone, which does not speak. A decoder or a whole model is needed."
            )
        if needs_encoder and not isinstance(opened.config, VLMConfig):
            raise InputError(f"{path} is a decoder without an encoder: it cannot look at images.")
        config = dataclasses.replace(opened.config, compute_dtype=dtype)
        tokenizer = tokenizer or find_tokenizer(path)
        notes: tuple[str, ...] = ()
        form: Template
        if template is not None:
            form = find_template(template, tokenizer, labels=False)
        elif isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.chat_template is not None:
            form = find_template(CHAT, tokenizer, labels=False)
        else:
            form = PlainTemplate(tokenizer)
            several = getattr(tokenizer, "chat_templates", ())
            none = f"None of the chat templates {', '.join(several)} is named default"
            notes = (
                f"{none if several else 'There is no chat template'}: texts are continued as they stand. --template=NAME names one.",
            )
        load, more = image_loader(path, config)
        more += unread_settings(path)
        ends = _end_tokens(form, tokenizer) | set(end_tokens(path, opened.origins))
        params = opened.read(dtype=jnp.dtype(dtype))
    return ChatModel(config, params, tokenizer, form, ends, load, notes=notes + more)


def _end_tokens(template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    stop = tokenizer.eos if template.stop == "eos" else tokenizer.special(template.stop)
    return frozenset({tokenizer.eos, stop})
