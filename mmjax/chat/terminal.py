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


def one_answer(conversation: Conversation, question: str) -> None:
    """Writes the answer to stdout, and to stderr what cut it, if anything did. Raises InputError if the question cannot be asked."""
    write_answer(conversation, question, lambda: False)


def interact(conversation: Conversation) -> None:
    """Asks the user until there is nothing more to ask."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` a history and keys for editing
    say("Ctrl-D leaves; /help says what else there is.")
    while (line := _line()) is not None:
        try:
            if (command := _COMMAND.fullmatch(line.strip())) is not None:
                if not _obey(conversation, command[1], command[2] or ""):
                    return
            elif line.strip():
                with _stoppable() as stopped:
                    write_answer(conversation, line, stopped)
        except InputError as error:
            say(f"mmjax: {error}")


def _line() -> str | None:
    """What the user says, or None at the end. Ctrl-C begins the line anew."""
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


def _obey(conversation: Conversation, name: str, argument: str) -> bool:
    """Does what a command says. Returns False if it is to leave."""
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
    """While it lasts, Ctrl-C sets a flag, which the result asks for; a second one raises KeyboardInterrupt."""
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
    conversation: Conversation, question: str, should_stop: Callable[[], bool]
) -> None:
    """Writes an answer to stdout while it is produced; a spinner turns on stderr until it begins, if that is a terminal."""
    safe = sys.stdout.isatty()  # escape sequences of a model must not reach the user's terminal
    last = "\n"
    pieces = conversation.ask(question, should_stop=should_stop)
    with Console(stderr=True).status("reading"):
        piece = next(pieces, None)
    while piece is not None:
        piece = piece.translate(_CONTROLS) if safe else piece
        print(piece, end="", flush=True)
        last = piece
        piece = next(pieces, None)
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
    """A line for the user, apart from what the model says."""
    print(text, file=sys.stderr, flush=True)
