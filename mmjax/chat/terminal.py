"""A conversation at a terminal: a prompt line, commands, answers that Ctrl-C stops."""

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console

from mmjax.chat.conversation import Conversation
from mmjax.errors import InputError

PROMPT = "> "
HELP = """\
/image PATH   show an image; it stands before the next question
/reset        begin anew
/help         this
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer. Everything else is said to the model."""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?")
_CONTROLS = {code: "�" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def interact(conversation: Conversation) -> None:
    """Asks the user until there is nothing more to ask."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and keys for editing
    say("Ctrl-D leaves; /help says what else there is.")
    while (line := _read_line()) is not None:
        try:
            if (command := _COMMAND.fullmatch(line.strip())) is not None:
                if not _run_command(conversation, command[1], command[2] or ""):
                    return
            elif line.strip():
                with _stoppable() as stopped:
                    write_answer(conversation, line, stopped)
        except InputError as error:
            say(f"mmjax: {error}")


def _read_line() -> str | None:
    """What the user types, or None at the end. Ctrl-C begins the line anew."""
    shown = sys.stdout.isatty()
    while True:
        try:
            if not shown:  # `input` would write its prompt there
                print(PROMPT, end="", file=sys.stderr, flush=True)
            return input(PROMPT if shown else "")
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            say("\nCtrl-D leaves.")
        except UnicodeDecodeError:
            say("mmjax: That is not UTF-8.")


def _run_command(conversation: Conversation, name: str, argument: str) -> bool:
    """Runs a command of the user. Returns False if the conversation is to end."""
    match name:
        case "exit":
            return False
        case "reset":
            conversation.reset()
            say("A new conversation begins.")
        case "image" if argument:
            conversation.add_image(Path(argument.strip("'\"")).expanduser())
            say("The image stands before the next question.")
        case "image":
            raise InputError("/image wants the path of an image.")
        case "help":
            say(HELP)
        case _:
            raise InputError(f"There is no command /{name}; /help lists them.")
    return True


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """While it lasts, Ctrl-C sets a flag, which the function that it yields returns; a second one raises KeyboardInterrupt."""
    requests = 0

    def request(number: int, frame: FrameType | None) -> None:
        del number, frame
        nonlocal requests
        requests += 1
        if requests > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, request)
    try:
        yield lambda: requests > 0
    finally:
        signal.signal(signal.SIGINT, before)


def write_answer(
    conversation: Conversation, question: str, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Writes an answer to stdout while it is produced, and to stderr what cut it, if anything did.

    A spinner is shown on stderr until the answer begins, if that is a terminal.

    Raises:
        InputError: the question cannot be asked.
    """
    safe = sys.stdout.isatty()  # escape sequences of a model must not reach the user's terminal
    last = "\n"
    answer = conversation.ask(question, should_stop=should_stop)
    with Console(stderr=True).status("reading"):
        text = next(answer, None)
    while text is not None:
        last = text.translate(_CONTROLS) if safe else text
        print(last, end="", flush=True)
        text = next(answer, None)
    if not last.endswith("\n"):
        print(flush=True)
    match conversation.finish_reason:
        case "length":
            say(
                f"mmjax: The answer was cut after {conversation.settings.max_new_tokens} tokens; --max_new_tokens allows more."
            )
        case "context":
            say(
                f"mmjax: The answer was cut: the model reads at most {conversation.context:,} tokens at once, and the context is full."
            )


def say(text: str) -> None:
    """Writes a line for the user to stderr, apart from what the model says."""
    print(text, file=sys.stderr, flush=True)
