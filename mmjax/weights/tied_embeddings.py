"""Heads that are the table of embeddings: what config.json says of it, against what stands in the files."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mmjax.models.config import DecoderConfig, VLMConfig
from mmjax.weights.families import Family, PartConfig
from mmjax.weights.tensors import TensorInfo, TensorSource

TABLE, HEAD = "decoder/embedding", "decoder/lm_head/kernel"

_CHUNK = 1024 * 1024  # numbers of each of the two that are in memory at once


class Settled(NamedTuple):
    """What the files mean.

    Attributes:
        config: untied, where the file has a head of its own.
        names: of its tensors, by the names that the table of the family has.
        unused: those (as the table spells them) that are copies.
        notes: what a person should know, as sentences.
    """

    config: PartConfig
    names: dict[str, str]
    unused: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def settle(
    source: TensorSource, family: Family, config: PartConfig, names: dict[str, str]
) -> Settled:
    """Follows the files where a config says that the head is tied and there is a tensor for it, as transformers does: equal to the table of
    embeddings it is a copy, alone it is the table, and otherwise it is a head of its own."""
    untied = _untied(config)
    if untied is None:
        return Settled(config, names)
    theirs = {rule.param_path: rule.checkpoint_name for rule in family.rules(untied)}
    table, head = theirs[TABLE], theirs[HEAD]
    if head not in names:
        return Settled(config, names)
    if table not in names:
        return Settled(
            config, {table if name == head else name: actual for name, actual in names.items()}
        )
    if _equal(source, names[table], names[head]):
        return Settled(config, names, frozenset({head}))
    note = f"{head} differs from {table}: the head is taken from the file, though config.json says that the two are tied."
    return Settled(untied, names, notes=(note,))


def _untied(config: PartConfig) -> PartConfig | None:
    """The same model with a head of its own; None if it has one, or no decoder."""
    if isinstance(config, VLMConfig):
        decoder = _untied(config.decoder)
        return (
            dataclasses.replace(config, decoder=decoder)
            if isinstance(decoder, DecoderConfig)
            else None
        )
    return (
        dataclasses.replace(config, tie_word_embeddings=False)
        if isinstance(config, DecoderConfig) and config.tie_word_embeddings
        else None
    )


def _equal(source: TensorSource, first: str, second: str) -> bool:
    """Whether two matrices hold the same numbers, compared part by part."""
    left, right = source.tensors[first], source.tensors[second]
    if (
        left.shape != right.shape
        or len(left.shape) != 2
        or not (_is_float(left) and _is_float(right))
    ):
        return False
    rows, columns = left.shape
    width = min(columns, _CHUNK)
    height = max(1, _CHUNK // max(1, width))
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            part = (slice(row, row + height), slice(column, column + width))
            if not _same(source.read(first, part), source.read(second, part)):
                return False
    return True


def _is_float(info: TensorInfo) -> bool:
    return bool(jnp.issubdtype(info.dtype, jnp.floating))


def _same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    if left.dtype == right.dtype:
        return bool((left.view(np.uint8) == right.view(np.uint8)).all())
    return bool((left.astype(np.float64) == right.astype(np.float64)).all())
