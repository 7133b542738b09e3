"""Whether numbers are finite: those that are not are neither read nor written."""

import math
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.errors import InputError

_CHUNK = 16 * 1024 * 1024  # numbers that are looked at in one go

# Bits of the exponent: all of them are set in what is not finite. numpy's isfinite is slow for numbers that processors do not have.
_EXPONENTS = {np.dtype(ml_dtypes.bfloat16): 0x7F80, np.dtype(np.float16): 0x7C00}


def is_finite(value: np.ndarray) -> bool:
    """Whether all numbers of an array are finite."""
    if value.ndim and value.size > _CHUNK and len(value) > 1:
        step = max(1, _CHUNK * len(value) // value.size)
        return all(is_finite(value[begin : begin + step]) for begin in range(0, len(value), step))
    mask = _EXPONENTS.get(value.dtype)
    return bool(np.isfinite(value).all() if mask is None else not (value.view(np.uint16) & mask == mask).any())


def cast_finite(value: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """An array in another dtype. Raises InputError if there are numbers in it, or in the result, that are not finite."""
    with np.errstate(over="ignore"):
        result = value.astype(dtype, copy=False)
    if is_finite(result):
        return result
    largest = float(np.abs(value.astype(np.float32, copy=False)).max(initial=0.0))
    if math.isfinite(largest):
        raise InputError(f"{name} cannot be written as {dtype.name}: its largest number, {largest:g}, would be infinite.")
    raise InputError(f"{name} has numbers that are not finite (NaN or infinite), and is not written.")
