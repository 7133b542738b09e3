"""How much work a refusal is, counted in calls and not in seconds, which other work on the machine would lengthen."""

import collections.abc
import contextlib
import sys


@contextlib.contextmanager
def at_most(calls: int) -> collections.abc.Iterator[None]:
    """Functions called within, of Python and of C: no more than `calls`. What has a square number of parts to look at has more."""
    seen = 0

    def count(frame, event, argument):
        nonlocal seen
        seen += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert seen <= calls, f"{seen} calls"
