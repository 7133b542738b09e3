"""A shuffled order that is never stored: the place of any one index is computed on its own."""

from functools import lru_cache

import numpy as np

_ROUNDS = 6
_WORD = (1 << 64) - 1


def shuffled(index: int, count: int, key: tuple[int, ...]) -> int:
    """Element `index` of a permutation of 0 .. count - 1 that `key` (non-negative integers) selects, in constant time and memory.

    A Feistel network permutes the smallest range of 4^n numbers that holds them; a result outside of `count` is permuted again until it
    falls inside (cycle walking: Black & Rogaway, "Ciphers with arbitrary finite domains", 2002), under four times on average.
    """
    assert 0 <= index < count
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    while True:
        left, right = index >> half, index & ((1 << half) - 1)
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) >> (64 - half))
        index = left << half | right
        if index < count:
            return index


@lru_cache(maxsize=256)
def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)))


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, 2014): every bit of the input reaches every bit of the output."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)
