"""How a command ends: its exceptions become a line on stderr and an exit code."""

import sys
from collections.abc import Callable

from mmjax.base.signals import SigtermInterrupt
from mmjax.errors import ExitCode, InputError, NonFiniteError, Preempted


def run_command(command: Callable[[], object], *, when_stopped: str = "") -> ExitCode:
    """Calls `command` and returns the exit code of the process. Unexpected exceptions pass through, with their traceback.

    Args:
        when_stopped: what the message of an interrupt adds about the state that is left: "Interrupted; nothing was written."
    """
    added = f"; {when_stopped}" if when_stopped else ""
    try:
        command()
        return ExitCode.DONE
    except InputError as error:
        message, code = str(error), ExitCode.WRONG_INPUT
    except NonFiniteError as error:
        message, code = str(error), ExitCode.NOT_FINITE
    except Preempted as error:
        message, code = str(error), ExitCode.PREEMPTED
    except KeyboardInterrupt:
        message, code = f"Interrupted{added}.", ExitCode.INTERRUPTED
    except SigtermInterrupt:
        message, code = f"Terminated{added}.", ExitCode.TERMINATED
    print(f"mmjax: {message}", file=sys.stderr)
    return code
