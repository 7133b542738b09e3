"""Copies between arrays whose axes lie in memory in different orders."""

import numpy as np

_STRIP = 128  # rows that are turned at a time: their turned part stays in the processor's cache
_PADDING = 64  # bytes behind each of these rows; rows a power of two apart would fall on the same lines of the cache


def copy(target: np.ndarray, value: np.ndarray) -> None:
    """target[...] = value, cast where the dtypes differ; quick also where the last two axes lie the other way round."""
    if target.dtype == value.dtype:  # numpy copies numbers of its own faster than those of ml_dtypes
        target, value = (array.view(f"u{array.itemsize}") for array in (target, value))
    if value.ndim < 2 or value.strides[-1] == value.itemsize:
        target[...] = value
        return
    for index in np.ndindex(value.shape[:-2]):
        _turn(target[index], value[index].T)


def _turn(target: np.ndarray, rows: np.ndarray) -> None:
    """target[...] = rows.T"""
    width = rows.shape[1]
    strip = np.empty((min(_STRIP, len(rows)), width + _PADDING // target.itemsize), target.dtype)[:, :width]
    for start in range(0, len(rows), _STRIP):
        part = rows[start : start + _STRIP]
        with np.errstate(over="ignore"):  # what is infinite then is refused by those who read or write it
            strip[: len(part)] = part
        target[:, start : start + len(part)] = strip[: len(part)].T


def in_order(value: np.ndarray) -> np.ndarray:
    """The same numbers with the last axis fastest: the array itself if it is so already."""
    if value.flags.c_contiguous:
        return value
    ordered = np.empty(value.shape, value.dtype)
    copy(ordered, value)
    return ordered
