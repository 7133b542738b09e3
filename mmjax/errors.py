"""How a run can end other than well. `main` maps each to an exit code; nothing else catches them."""


class InputError(ValueError):
    """The user's config, data or weights are wrong. The message is one or a few sentences and is shown without a traceback (exit code
    2).
    """


class NonFiniteError(RuntimeError):
    """The loss or a gradient stopped being finite; the update was not applied (exit code 3)."""


class Preempted(Exception):
    """SIGTERM or Ctrl-C arrived and the state is safely on disk (exit code 75)."""
