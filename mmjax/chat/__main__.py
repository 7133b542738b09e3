"""Talks with a decoder or a vision-language model.

    python -m mmjax.chat --checkpoint=PATH [--image=FILE ...] [--prompt=TEXT] [--system=TEXT] [--temperature=0] [--top_p=1] [--seed=0]
        [--max_new_tokens=512] [--dtype=float32] [--tokenizer=PATH] [--template=NAME]

PATH is a folder of transformers, a GGUF file, a folder that mmjax wrote, a checkpoint of a run (<workdir>/checkpoints/<stage>/<step>), the
folder of a run, or fetched:NAME for what `python -m mmjax.fetch NAME` has brought. With --prompt, or with a text on stdin, one answer is
written to stdout, and nothing else; at a terminal without --prompt, questions are asked one after the other.

Exit codes: 0 done, 2 it cannot be done, 130 interrupted, 143 terminated.
"""

import argparse
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mmjax.base import host
from mmjax.base.signals import SigtermInterrupt, defer_signals, interruptible
from mmjax.errors import InputError

DONE, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 2, 130, 143
DTYPES = ("float32", "bfloat16")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}. --help lists the flags.")


def chat(options: argparse.Namespace) -> None:
    """Runs a command line. Raises InputError if the model, an image or the question cannot be used."""
    asked = _question(options)
    from rich.console import (
        Console,  # here and below: what imports jax comes after all that can be wrong without it
    )

    with Console(stderr=True).status(f"loading {options.checkpoint}"):
        with defer_signals():
            from mmjax.chat import terminal
            from mmjax.chat.conversation import ChatSettings, Conversation
            from mmjax.chat.opening import open_chat
        sees = bool(options.image)
        model = open_chat(
            options.checkpoint,
            tokenizer=options.tokenizer,
            template=options.template,
            dtype=options.dtype,
            sees=sees,
        )
        settings = ChatSettings(
            options.temperature, options.top_p, options.seed, options.max_new_tokens, options.system
        )
        conversation = Conversation(model, settings)
        for path in options.image:
            conversation.add_image(path)
    for note in model.notes:
        terminal.say(f"mmjax: {note}")
    if asked is None:
        terminal.interact(conversation)
    else:
        terminal.one_answer(conversation, asked)


def _question(options: argparse.Namespace) -> str | None:
    """The one question; None: there is a user to ask."""
    if options.prompt is not None:
        question: str = options.prompt
    elif sys.stdin is not None and sys.stdin.isatty():
        return None
    else:
        try:
            question = (
                ""
                if sys.stdin is None
                else sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
            )
        except UnicodeDecodeError:
            raise InputError("The text on stdin is not UTF-8.") from None
    if not question:
        raise InputError(
            "There is nothing to answer: give a --prompt, a text on stdin, or a terminal."
        )
    return question


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        "python -m mmjax.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="the model")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="an image; may be given several times",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="one question, which is answered")
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="what the model is told before; by default what its template says",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0, the default: always the likeliest token"
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens that have this probability together",
    )
    parser.add_argument("--seed", type=int, default=0, help="of chance")
    parser.add_argument(
        "--max_new_tokens", type=int, default=512, help="after which an answer is cut"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation")
    parser.add_argument("--tokenizer", metavar="PATH", help="if it is not beside the weights")
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="plain, short_prompt, vicuna_v1, llama3, or chat for the tokenizer's own",
    )
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise InputError(f"--temperature is {options.temperature}; it must be 0 or more.")
    if not 0 <= options.top_p <= 1:
        raise InputError(f"--top_p is {options.top_p}; it must lie between 0 and 1.")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed is {options.seed}; it must lie between 0 and {2**32 - 1}.")
    if options.max_new_tokens < 1:
        raise InputError(f"--max_new_tokens is {options.max_new_tokens}; it must be positive.")
    for path in options.image:
        if not path.is_file():
            raise InputError(
                f"{path} is a folder, not an image."
                if path.is_dir()
                else f"There is no image {path}."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    host.prepare()
    try:
        with interruptible():
            chat(_parse(arguments))
    except InputError as error:
        return _end(str(error), WRONG_INPUT)
    except KeyboardInterrupt:
        return _end("Interrupted.", INTERRUPTED)
    except SigtermInterrupt:
        return _end("SigtermInterrupt.", TERMINATED)
    return DONE


def _end(message: str, code: int) -> int:
    print(f"mmjax: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads the answer may stop reading
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may lack characters
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: threads of jax would have a word at the end of an interrupted process
