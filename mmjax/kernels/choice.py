"""What a program prefers where a kernel has several implementations, for calls that name none."""

import contextlib
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Choice:
    """By name, the implementation that serves wherever it can; None: the dispatcher's rules alone.

    Attributes:
        deterministic: results have the same bits every time, even where they could be had faster without.
    """

    attention: str | None = None
    deterministic: bool = True


_CURRENT = jax.make_user_context(default_value=Choice())
"""Part of what compiled functions are kept under: one that was traced under another choice is traced again."""


def current() -> Choice:
    return _CURRENT.value


def choosing(choice: Choice) -> contextlib.AbstractContextManager[None]:
    return _CURRENT(choice)
