"""The tokenizer of a recipe, and a decoder that has room for it."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from absl import logging

from mmjax.data.examples import Special, Text, Turn
from mmjax.data.text.templates import CHAT, find_template
from mmjax.data.text.tokenizer import HuggingFaceTokenizer, Tokenizer, WordTokenizer, open_tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.recipe.recipe import Recipe, Stage

MULTIPLE = 8  # of the vocabulary of a decoder that is built for its tokenizer: matrix units like it


def make_tokenizer(recipe: Recipe, *, download: bool = True) -> Tokenizer:
    """Reads the recipe's tokenizer, or builds it from the training text of all stages; what is held out contributes nothing.

    Args:
        download: a tokenizer of the Hugging Face Hub that is not in the cache is brought; False: it is refused.

    Raises:
        InputError: the tokenizer or the data cannot be read.
    """
    if recipe.tokenizer.kind == "huggingface":
        if not recipe.tokenizer.path:
            raise InputError(
                "config.tokenizer.path has no value yet; give a tokenizer file or its folder with --config.tokenizer.path=..."
            )
        return open_tokenizer(resolved(recipe.tokenizer.path, weights=False, download=download))
    templates = {stage.data.template for stage in recipe.stages.values()}
    specials = itertools.chain.from_iterable(
        find_template(name).special_tokens for name in sorted(templates)
    )
    tokenizer = WordTokenizer.build(
        training_texts(recipe), special_tokens=list(dict.fromkeys(specials))
    )
    logging.info("Built a tokenizer of %d tokens from the training text", tokenizer.vocabulary)
    return tokenizer


def training_texts(recipe: Recipe) -> Iterator[str]:
    """Every text that some stage trains on; a source that stages share is read once."""
    seen: set[Any] = set()
    for stage in recipe.stages.values():
        for config in stage.data.sources.values():
            key = (dataclasses.replace(config, weight=1.0), stage.data.holdout, stage.data.template)
            if key not in seen:
                seen.add(key)
                template = find_template(stage.data.template)
                yield from config.open(template, holdout=stage.data.holdout).texts()


def fit(recipe: Recipe, tokenizer: Tokenizer) -> Recipe:
    """The recipe with a vocabulary for every decoder: where it says None, the tokenizer's, rounded up.

    Raises:
        InputError: a decoder lacks a token that its rows may have.
    """
    needed = needed_vocabulary(tokenizer)
    for stage in recipe.stages.values():
        vocabulary = stage.model.decoder.vocabulary
        if vocabulary is None or vocabulary >= needed:
            continue
        largest = _largest_written(tokenizer, stage.data.template)
        if largest >= vocabulary:
            raise InputError(
                f"config.stages.{stage.name}.model.decoder.vocabulary must be at least the {largest + 1} tokens of the tokenizer, not "
                f"{vocabulary}: the two belong to different models, or the vocabulary has to be none (as many as the tokenizer needs)."
            )
    return filled(recipe, -(-needed // MULTIPLE) * MULTIPLE)


def _largest_written(tokenizer: Tokenizer, template: str) -> int:
    """The largest id that stands in rows of a template: of what texts are made of, and of the special tokens that the template writes.

    Others are harmless where the decoder has no room for them: padding is masked, visual tokens take the place of the image token, and no
    text becomes a special token.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return needed_vocabulary(tokenizer) - 1
    special = tokenizer.special_tokens
    written = {tokenizer.bos, tokenizer.eos}
    form = find_template(template, tokenizer)
    written |= {special[name] for name in form.special_tokens if name in special}
    if template == CHAT:
        source = tokenizer.chat_template or ""
        turns = [Turn("user", (Text("question"),)), Turn("assistant", (Text("answer"),))]
        names = {part.name for part in form.conversation(turns) if isinstance(part, Special)}
        names |= {name for name in special if name in source}
        written |= {special[name] for name in names if name in special}
        # Visual tokens take its place.
        written.discard(tokenizer.image)
    return max(*written, tokenizer.largest_of_text)


def needed_vocabulary(tokenizer: Tokenizer) -> int:
    """Tokens that the decoder embeds or predicts. The image token, where it stands last, is neither: visual tokens take its place."""
    return tokenizer.vocabulary - (tokenizer.image == tokenizer.vocabulary - 1)


def filled(recipe: Recipe, vocabulary: int) -> Recipe:
    """The recipe with `vocabulary` for every decoder that has none yet."""

    def fill(stage: Stage) -> Stage:
        if stage.model.decoder.vocabulary is not None:
            return stage
        decoder = dataclasses.replace(stage.model.decoder, vocabulary=vocabulary)
        return dataclasses.replace(stage, model=dataclasses.replace(stage.model, decoder=decoder))

    stages = {name: fill(stage) for name, stage in recipe.stages.items()}
    return dataclasses.replace(recipe, stages=stages)
