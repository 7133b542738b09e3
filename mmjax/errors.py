"""How a command can end: its exit code, and the exceptions that lead to one."""

import enum


class ExitCode(enum.IntEnum):
    """What a command returns. 1 is Python's own, for an unexpected exception, which keeps its traceback."""

    DONE = 0
    WRONG_INPUT = 2
    NOT_FINITE = 3
    HANG = 4
    PREEMPTED = 75
    INTERRUPTED = 130
    TERMINATED = 143


class InputError(ValueError):
    """The user's config, data or weights are wrong. The message is one or a few sentences and is shown without a traceback
    (`ExitCode.WRONG_INPUT`)."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient stopped being finite; the update was not applied (`ExitCode.NOT_FINITE`)."""


class Preempted(Exception):
    """SIGTERM or Ctrl-C arrived and the state is safely on disk (`ExitCode.PREEMPTED`)."""
