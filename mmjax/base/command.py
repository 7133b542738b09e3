"""How a command ends: its exceptions become a line on stderr and an exit code."""

import signal
import sys
from collections.abc import Callable

from mmjax.base.files import OF_THE_DISK, not_utf8
from mmjax.base.signals import SigtermInterrupt, code_of, end_command
from mmjax.errors import ExitCode, InputError, NonFiniteError, Preempted


def run_command(command: Callable[[], object], *, when_stopped: str = "") -> ExitCode:
    """Calls `command` and returns the exit code of the process. Unexpected exceptions pass through, with their traceback. Where the process
    counts signals (`begin_command`) and one has come, it ends here.

    Args:
        when_stopped: what the message of an interrupt adds about the state that is left: "Interrupted; nothing was written."
    """
    added = f"; {when_stopped}" if when_stopped else ""
    try:
        command()
        return end_command(ExitCode.DONE)
    except InputError as error:
        message, code = str(error), ExitCode.WRONG_INPUT
    except NonFiniteError as error:
        message, code = str(error), ExitCode.NOT_FINITE
    except Preempted as error:
        message, code = str(error), ExitCode.PREEMPTED
    except KeyboardInterrupt:
        message, code = f"Interrupted{added}.", code_of(signal.SIGINT)
    except SigtermInterrupt:
        message, code = f"Terminated{added}.", code_of(signal.SIGTERM)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        where = "A file" if error.filename is None else f"{error.filename}"
        message, code = f"{where} cannot be used: {error.strerror}.", ExitCode.WRONG_INPUT
    except UnicodeEncodeError as error:
        if not not_utf8(error.object):
            raise
        message = f"{error.object!r} is not UTF-8: rename the file or folder, or correct the flag."
        code = ExitCode.WRONG_INPUT
    print(f"mmjax: {message}", file=sys.stderr)
    return end_command(code)
