"""What a model can be called with: kinds and shapes of arrays, and ids that its vocabulary has. Checked before anything is computed.

jax itself takes an id that a table does not have for one of its last rows. Inside a compiled function ids are not known yet; there, shapes
and kinds are checked alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import InputError
from mmjax.typing import PADDING_SEGMENT, Batch


def check_tokens(tokens: Any, vocabulary: int | None, is_text: Any = True) -> None:
    """Raises InputError unless `tokens` are integers [B, T], all of them ids of the vocabulary.

    Args:
        is_text: [B, T], where ids mean something: not in padding, nor in the place of visual tokens.
    """
    _check_array("tokens", tokens, ("rows", "tokens"), jnp.integer)
    if vocabulary is None or not (_is_known(tokens) and _is_known(is_text)):
        return
    ids = np.asarray(tokens)[np.broadcast_to(np.asarray(is_text), tokens.shape)]
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if wrong.size:
        raise InputError(
            f"tokens must be ids from 0 to {vocabulary - 1}, which is the last of the vocabulary; there is {wrong.flat[0]}."
        )


def check_row(tokens: Any, segments: Any, vocabulary: int | None) -> None:
    """Raises InputError unless `tokens` are ids [B, T] of the vocabulary where `segments`, as many, do not say padding; None: all are."""
    _check_array("tokens", tokens, ("rows", "tokens"), jnp.integer)
    if segments is None:
        check_tokens(tokens, vocabulary)
    else:
        _check_row_array("segments", segments, tokens)
        check_tokens(tokens, vocabulary, segments != PADDING_SEGMENT)


def check_pixels(pixels: Any) -> None:
    """Raises InputError unless `pixels` are numbers [B, h, w, 3]."""
    _check_array("pixels", pixels, ("images", "height", "width", "3 channels"), jnp.number)


def check_batch(batch: Batch, vocabulary: int | None, image_size: int) -> None:
    """Raises InputError unless the arrays of a batch fit each other and the model."""
    for field in dataclasses.fields(batch):
        if field.name not in ("images", "image_mask"):
            _check_row_array(field.name, getattr(batch, field.name), batch.tokens)
    is_text = (batch.visual_embedding_index < 0) & (batch.segment_ids != PADDING_SEGMENT)
    check_tokens(batch.tokens, vocabulary, is_text)
    axes = ("rows", "images", "height", "width", "3 channels")
    _check_array("images", batch.images, axes, jnp.number)
    rows, images, height, width, _ = batch.images.shape
    if rows != len(batch.tokens) or tuple(batch.image_mask.shape) != (rows, images):
        raise InputError(
            f"images {list(batch.images.shape)} and image_mask {list(batch.image_mask.shape)} must belong to the {len(batch.tokens)} rows "
            "of tokens."
        )
    if images and (height, width) != (image_size, image_size):
        raise InputError(
            f"images must be {image_size} x {image_size} pixels, for which the model is made; they are {width} x {height}."
        )


def _check_row_array(name: str, value: Any, tokens: Any) -> None:
    _check_array(name, value, ("rows", "tokens"), jnp.integer)
    if value.shape != tokens.shape:
        raise InputError(
            f"{name} must be as many as tokens, {list(tokens.shape)}; they are {list(value.shape)}."
        )


def _check_array(name: str, value: Any, axes: tuple[str, ...], kind: Any) -> None:
    shape = f"[{', '.join(axes)}]"
    if not isinstance(value, jax.Array | np.ndarray):
        raise InputError(
            f"{name} must be an array {shape} of numpy or jax, not a {type(value).__name__}; numpy.asarray makes one of nested lists."
        )
    if not jnp.issubdtype(value.dtype, kind):
        raise InputError(
            f"{name} must be {'integers' if kind is jnp.integer else 'numbers'}, not {value.dtype}."
        )
    if value.ndim != len(axes) or (axes[-1] == "3 channels" and value.shape[-1] != 3):
        raise InputError(f"{name} must be {shape}; they are {list(value.shape)}.")


def _is_known(value: Any) -> bool:
    """Whether numbers are at hand, all of them, outside of a compiled function."""
    if isinstance(value, jax.core.Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable
