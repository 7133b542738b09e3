"""mmjax: runs a recipe from the command line.

    mmjax --config=cos[:variant] [--config.<path>=<value> ...] [--workdir=DIR] [--mode=MODE]

--config is a config file (configs/cos.py), or the name of one that mmjax ships: cos, graft. `python -m mmjax.main` is the same command.

    train       (default) trains every stage, scores the last one and writes a report; the same command again goes on where it stopped
    evaluate    scores the last checkpoint, or --checkpoint, or what a stage begins with: --begin
    generate    answers --prompt about --image, or captions the image; both flags may be given several times: every prompt, every image
    export      writes the last checkpoint, or --checkpoint, as folders for transformers and other tools
    show        prints every setting of the recipe; signs show which differ from the defaults or are still to be given
    plan        says what the recipe will cost, on --topology (such as h100:8) if given, and what it saves --against another one

Exit codes: 0 done, 1 something unexpected, 2 the input is wrong, 3 the loss is not finite, 4 a hang was detected, 75 stopped by SIGTERM or
Ctrl-C with all saved that there was to save, 130 left at once by a second Ctrl-C.
"""

import sys
from pathlib import PurePath

from mmjax.base import signals
from mmjax.errors import ExitCode, InputError

# In the script `mmjax`, signals count from here on; with `python -m`, they do since the package's first line.
if PurePath(sys.argv[0]).name == "mmjax":
    signals.begin_command(ExitCode.PREEMPTED)

import dataclasses
import os
import pathlib
import re
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from mmjax.base import host
from mmjax.base.command import run_command
from mmjax.base.files import not_utf8
from mmjax.plan.topology import Topology
from mmjax.recipe.schema import choose, suggestion

if TYPE_CHECKING:
    from mmjax.recipe.recipe import Recipe
    from mmjax.runs.workdir import Workdir

# Flags beside those that every mode has: --config, --workdir, --mode, --verbose.
MODES = {
    "train": ("stop_after_steps", "accept_changed_data"),
    "evaluate": ("checkpoint", "begin"),
    "generate": ("checkpoint", "image", "prompt"),
    "show": (),
    "plan": ("topology", "against", "text_length"),
    "export": ("checkpoint",),
}

_OVERRIDE = re.compile(r"--?config\.([^=]*)(?:=(.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line.

    Attributes:
        config: file and variant; None: the recipe of the run in `workdir`.
        overrides: settings of the config by path, as text.
    """

    config: str | None = None
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    workdir: str | None = None
    mode: str = "train"
    image: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    checkpoint: str | None = None
    begin: str | None = None
    topology: str | None = None
    against: str | None = None
    text_length: int | None = None
    stop_after_steps: int | None = None
    accept_changed_data: bool = False
    verbose: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (program name first) and returns its exit code. Unexpected exceptions pass through, with their traceback."""
    argv = list(sys.argv if argv is None else argv)
    host.prepare()
    if {"--help", "-help", "-h", "--helpfull"} & set(argv[1:]):
        values = _define_flags()
        lines = [f"    --{name:<20}{values[name].help}" for name in _names()]
        print("\n".join([__doc__ or "", *lines]))
        return ExitCode.DONE

    def command() -> None:
        with signals.reraise_swallowed():
            _dispatch(parse(argv))

    return run_command(command)


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line. Raises InputError for anything that it does not know."""
    for argument in argv:
        if not_utf8(argument):
            raise InputError(
                f"Arguments must be UTF-8, and {argument!r} is not: rename the file or folder."
            )
    rest, overrides = _split_overrides(argv)
    values = _define_flags()
    try:
        unused = values(rest)[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.lstrip("-")
        raise InputError(f"There is no flag --{name}. {suggestion(name, _names())}") from None
    except flags.Error as error:
        raise InputError(f"{error}.") from None
    if unused:
        raise InputError(
            f"Unexpected argument {unused[0]!r}: every argument is a flag, such as --config=cos."
        )
    given: dict[str, Any] = {name: values[name].value for name in _names() if values[name].present}
    options = Options(overrides=overrides, **given)
    allowed = choose(options.mode, MODES, "mode")
    for mode, own in MODES.items():
        for name in own:
            if name in given and name not in allowed:
                raise InputError(
                    f"--{name} has no effect with --mode={options.mode}; it belongs to --mode={mode}."
                )
    if options.config is None:
        if options.overrides:
            raise InputError(
                f"--config.{next(iter(options.overrides))} changes a config file, but there is no --config."
            )
        if options.workdir is None and options.checkpoint is None:
            raise InputError(
                "--config is missing, such as --config=cos (or --workdir=..., of a run that was begun)."
            )
    if options.begin is not None and options.checkpoint is not None:
        raise InputError(
            "--begin scores what a stage begins with, and --checkpoint what a stage has saved: only one of them can be meant."
        )
    for name in ("config", "workdir", "checkpoint", "begin", "image", "against"):
        value = given.get(name)
        if "" in (value if isinstance(value, list) else [value]):
            raise InputError(f"--{name} is empty.")
    for name in ("stop_after_steps", "text_length"):
        if name in given and given[name] < 1:
            raise InputError(f"--{name} must be positive, not {given[name]}.")
    if options.topology is not None:
        Topology.parse(options.topology)
    return options


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The flags, and the settings among them: --config.<path>=<value>, or the value as the next argument. The last one wins."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if argument.startswith(("--noconfig.", "-noconfig.")):
            raise InputError(f"{argument}: write --config.{argument.partition('.')[2]}=false.")
        if match is None:
            rest.append(argument)
            continue
        key, value = match.groups()
        value = next(arguments, None) if value is None else value
        if value is None or value.startswith("--"):
            raise InputError(f"--config.{key} has no value; write --config.{key}=<value>.")
        overrides.pop(key, None)
        overrides[key] = value
    return rest, overrides


def _define_flags() -> flags.FlagValues:
    """Flags of their own, not the process's: a command line is parsed as often as one likes."""
    values = flags.FlagValues()
    texts = {
        "config": "The config, by name or path, with a variant if wanted: cos:7b, mine.py. --config.<path>=<value> changes one setting.",
        "workdir": "Where the run is kept; by default runs/<config>[-<variant>][-<hash of changed settings>].",
        "checkpoint": "evaluate, generate, export: a folder checkpoints/<stage>/<step> instead of the newest.",
        "begin": "evaluate: a stage, to be scored before its first step: an encoder that was just grafted, for one.",
        "topology": "plan: the devices, such as h100:8, h200:64 or v5p:4x4x4.",
        "against": "plan: a config, with a variant if wanted, to compare with; --config.<path>=<value> does not change it.",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, None, text, flag_values=values)
    several = {
        "image": "generate: path of an image; may be given several times.",
        "prompt": "generate: what to ask; may be given several times, and is asked about each image.",
    }
    for name, text in several.items():
        flags.DEFINE_multi_string(name, None, text, flag_values=values)
    flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.", flag_values=values)
    flags.DEFINE_integer(
        "stop_after_steps",
        None,
        "train: stop, saved, after so many steps of this process.",
        flag_values=values,
    )
    text = (
        "train: go on although data, tokenizer or weights have changed since the run has read them."
    )
    flags.DEFINE_boolean("accept_changed_data", False, text, flag_values=values)
    text = "plan: so many text tokens in every row of all stages, also of --against."
    flags.DEFINE_integer("text_length", None, text, flag_values=values)
    flags.DEFINE_boolean("verbose", False, "Log what the libraries log.", flag_values=values)
    return values


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Options) if field.name != "overrides"]


def _dispatch(options: Options) -> None:
    """Does what the options ask for. Everything from here on may import jax."""
    import logging as python_logging

    from absl import logging

    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO if options.verbose else logging.ERROR)
    python_logging.getLogger("mmjax.kernels").setLevel(
        python_logging.INFO if options.verbose else python_logging.WARNING
    )
    if options.mode in ("plan", "show"):
        # They need no accelerator, and must not take one from a run.
        os.environ["JAX_PLATFORMS"] = "cpu"
    recipe, workdir = _read(options)
    match options.mode:
        case "show":
            from mmjax.config.show import show

            text = show(recipe, options.overrides)
            # The reader of a pipe may close it early; to other writes of a process that calls `main`, that stays an error.
            before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            print(text, flush=True)
            signal.signal(signal.SIGPIPE, before)
        case "plan":
            from mmjax.config.load import load
            from mmjax.plan import table

            against = None
            if options.against:
                # As its config file has it, without the settings of the command line.
                try:
                    against = load(options.against, partial=True)
                except InputError as error:
                    raise InputError(f"--against={options.against}: {error}") from None
            table.run(recipe, options.topology, against, text_length=options.text_length)
        case "export":
            from mmjax.runs.export import export

            with signals.StopSignal() as stop, stop.at_once("Stopped; nothing half-made was left."):
                export(recipe, workdir, checkpoint=options.checkpoint)
        case "train":
            from mmjax.runs.run import train

            train(
                recipe,
                workdir,
                stop_after_steps=options.stop_after_steps,
                accept_changed_data=options.accept_changed_data,
            )
        case "evaluate":
            from mmjax.runs.score import evaluate

            evaluate(recipe, workdir, checkpoint=options.checkpoint, begin=options.begin)
        case "generate":
            from mmjax.runs.answer import generate_all

            several = len(options.image) > 1 or len(options.prompt) > 1
            for answer in generate_all(
                recipe,
                workdir,
                images=options.image,
                prompts=options.prompt,
                checkpoint=options.checkpoint,
            ):
                print(answer.line() if several else answer.text, flush=True)


def _read(options: Options) -> "tuple[Recipe, Workdir]":
    """The recipe, of the config file or else of the run in the workdir; and the workdir. Nothing is written."""
    from mmjax.config.load import load
    from mmjax.runs.workdir import Workdir, default_path

    of_checkpoint = None
    if options.checkpoint:
        # Of a checkpoint <workdir>/checkpoints/<stage>/<step>.
        above = pathlib.Path(options.checkpoint).absolute().parents
        of_checkpoint = above[min(2, len(above) - 1)]
    if options.config is None:
        workdir = Workdir(options.workdir or of_checkpoint or ".")
        return workdir.recipe(), workdir
    recipe = load(options.config, options.overrides, partial=options.mode in ("plan", "show"))
    return recipe, Workdir(
        options.workdir or of_checkpoint or default_path(options.config, options.overrides)
    )


if __name__ == "__main__":
    sys.exit(main())
