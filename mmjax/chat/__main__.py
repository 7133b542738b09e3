"""Talks with a decoder or a vision-language model.

    python -m mmjax.chat --checkpoint=PATH [--image=FILE ...] [--prompt=TEXT] [--system=TEXT] [--temperature=0] [--top_p=1] [--seed=0]
        [--max_new_tokens=512] [--dtype=float32] [--tokenizer=PATH] [--template=NAME]

PATH is a folder of transformers, a GGUF file, a folder that mmjax wrote, a checkpoint of a run (<workdir>/checkpoints/<stage>/<step>), the
folder of a run, fetched:NAME for what `python -m mmjax.fetch NAME` has brought, or hf:OWNER/NAME for a model of the Hugging Face Hub.
With --prompt, or with a text on stdin, one answer is written to stdout, and nothing else; at a terminal without --prompt, questions are
asked one after the other.

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
from mmjax.base.command import run_command
from mmjax.base.signals import defer_signals, interruptible
from mmjax.errors import InputError

DTYPES = ("float32", "bfloat16")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]}. --help lists the flags.")


def chat(options: argparse.Namespace) -> None:
    """Runs a command line. Raises InputError if the model, an image or the question cannot be used."""
    prompt = _prompt(options)
    # Here and below: what imports jax comes after all that can be wrong without it.
    from rich.console import Console

    with Console(stderr=True).status(f"loading {options.checkpoint}"):
        with defer_signals():
            from mmjax.chat import terminal
            from mmjax.chat.conversation import ChatSettings, Conversation
            from mmjax.chat.opening import open_chat
        model = open_chat(
            options.checkpoint,
            tokenizer=options.tokenizer,
            template=options.template,
            dtype=options.dtype,
            needs_encoder=bool(options.image),
        )
        settings = ChatSettings(
            options.temperature, options.top_p, options.seed, options.max_new_tokens, options.system
        )
        conversation = Conversation(model, settings)
        for path in options.image:
            conversation.add_image(path)
    for note in model.notes:
        terminal.say(f"mmjax: {note}")
    if prompt is None:
        terminal.interact(conversation)
    else:
        terminal.write_answer(conversation, prompt)


def _prompt(options: argparse.Namespace) -> str | None:
    """The one question, from --prompt or from stdin; None: a user at a terminal asks."""
    prompt: str | None = options.prompt
    if prompt is None and sys.stdin is not None:
        if sys.stdin.isatty():
            return None
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError:
            raise InputError("The text on stdin is not UTF-8.") from None
    if not prompt:
        raise InputError(
            "There is nothing to answer: give a --prompt, a text on stdin, or a terminal."
        )
    return prompt


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "python -m mmjax.chat", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="PATH", help="the model")
    shown = "an image; may be given several times"
    add("--image", action="append", default=[], type=Path, metavar="FILE", help=shown)
    add("--prompt", metavar="TEXT", help="one question, which is answered")
    told = "what the model is told before; by default what its template says"
    add("--system", metavar="TEXT", help=told)
    likeliest = "0, the default: always the likeliest token"
    add("--temperature", type=float, default=0.0, help=likeliest)
    drawn = "draw from the likeliest tokens that have this probability together"
    add("--top_p", type=float, default=1.0, help=drawn)
    add("--seed", type=int, default=0, help="of chance")
    add("--max_new_tokens", type=int, default=512, help="after which an answer is cut")
    add("--dtype", choices=DTYPES, default="float32", help="of the computation")
    add("--tokenizer", metavar="PATH", help="if it is not beside the weights")
    named = "plain, short_prompt, vicuna_v1, llama3, or chat for the tokenizer's own"
    add("--template", metavar="NAME", help=named)
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise InputError(f"--temperature must be 0 or more, not {options.temperature}.")
    if not 0 <= options.top_p <= 1:
        raise InputError(f"--top_p must lie between 0 and 1, not {options.top_p}.")
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed must lie between 0 and {2**32 - 1}, not {options.seed}.")
    if options.max_new_tokens < 1:
        raise InputError(f"--max_new_tokens must be positive, not {options.max_new_tokens}.")
    for path in options.image:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not an image.")
        if not path.is_file():
            raise InputError(f"There is no image {path}.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    host.prepare()

    def command() -> None:
        with interruptible():
            chat(_parse(arguments))

    return run_command(command)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader of a pipe may close it early
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may lack characters
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: threads of jax would write more when an interrupted process ends
