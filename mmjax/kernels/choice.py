"""What a program prefers where a kernel has several implementations, for calls that name none."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Choice:
    """By name, the implementation that serves wherever it can; None: the dispatcher's rules alone.

    Attributes:
        deterministic: results have the same bits every time, even where they could be had faster without.
    """

    attention: str | None = None
    deterministic: bool = True


_NOTHING = Choice()
_CURRENT = contextvars.ContextVar("mmjax_kernels", default=_NOTHING)


def current() -> Choice:
    return _CURRENT.get()


@contextlib.contextmanager
def choosing(choice: Choice) -> Iterator[None]:
    """For what is traced within. A function that was compiled before stays as it is."""
    before = _CURRENT.set(choice)
    try:
        yield
    finally:
        _CURRENT.reset(before)
