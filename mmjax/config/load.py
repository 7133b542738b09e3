"""From a config file and the command line to a Recipe.

A config file has `get_config(variant)`, which returns an ml_collections ConfigDict shaped like a Recipe. `model` and `data` hold what all
stages share, and a stage's own are merged over them. `stages` is keyed by name, so every setting has one flag:
`--config.stages.pretrain.steps=100`.
"""

import ast
import copy
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mmjax.errors import InputError
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.recipe.schema import SHARED, KeyPath, convert, field_hints, suggestion

Overrides = Mapping[str, object] | Iterable[tuple[str, object]]
"""Values by path, {"stages.pretrain.steps": 100}, in the order in which they are applied: as text, or as what they are."""

_KEYED_BY_NAME = ("stages", "sources", "notes")
_ABSENT = object()


def load_recipe(path: str, overrides: Overrides = ()) -> Recipe:
    """The recipe of a config file, to look at, plan or train. Paths that the user still has to give may be empty until it is trained.

    Args, Raises: as `load`.
    """
    return load(path, overrides, partial=True)


def load(path: str, overrides: Overrides = (), *, partial: bool = False) -> Recipe:
    """The recipe of a config file.

    Args:
        path: of the file, with its variant if it has one: "configs/cos.py", "configs/cos.py:7b"; of one that mmjax ships, its name alone
            does: "cos", "cos:7b".
        overrides: settings by their path below `config`: numbers, bools, tuples, None, or text as a command line gives it.
        partial: accept paths that the user still has to give (they are empty); for what reads no data.

    Raises:
        InputError: there is no such file, variant or setting, a value has the wrong type, or the settings contradict each other.
    """
    from mmjax.config import checks  # imports jax, which reading a config file does not need

    file, _, variant = path.partition(":")
    config = read_config(file, variant)
    changes = dict(overrides)
    for key, value in changes.items():
        _override(config, key, value)
    try:
        plain = config.to_dict()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{file}: a value computed from an overridden one fails: {error}"
        ) from None
    stages = plain.get("stages")
    for key in changes if isinstance(stages, Mapping) else ():
        # What all stages share has no effect where every stage sets its own.
        names = key.split(".")
        if names[0] in SHARED and all(_at(one, names) is not _ABSENT for one in stages.values()):
            flags = ", ".join(f"--config.stages.{stage}.{key}" for stage in stages)
            raise InputError(
                f"config.{key} has no effect, because every stage sets its own: use {flags}."
            )
    recipe = recipe_from(plain, name=pathlib.Path(file).stem, variant=variant)
    shared = _at(plain, ["data", "sources"])
    checks.check(
        recipe, partial=partial, shared_sources=shared if isinstance(shared, Mapping) else ()
    )
    return recipe


def recipe_from(config: ConfigDict | Mapping[str, Any], *, name: str, variant: str = "") -> Recipe:
    """The recipe that a ConfigDict describes; only its form is checked here. Raises InputError as `load`."""
    tree = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    shared = {key: tree.pop(key) for key in SHARED if key in tree}
    stages = tree.pop("stages", None)
    if not isinstance(stages, Mapping) or not stages:
        raise InputError("config.stages is missing: a recipe has at least one stage, by name.")
    known = {*SHARED, *field_hints(Recipe)} - {"name", "variant"}
    for key in tree:
        if key not in known:
            raise InputError(
                f"config.{key}: there is no such setting. {suggestion(str(key), sorted(known))}"
            )

    def stage(name: str, own: Any) -> Stage:
        path = KeyPath(("stages", name), own=own, shared=())
        if not isinstance(own, Mapping):
            raise InputError(f"{path} is {own!r}; a group of settings is expected.")
        merged = {
            key: _merge(shared.get(key, {}), own.get(key, {}))
            for key in SHARED
            if key in shared or key in own
        }
        return convert({**own, **merged, "name": name}, Stage, path)

    built = {str(key): stage(str(key), value) for key, value in stages.items()}
    hints = field_hints(Recipe)
    rest = {key: convert(value, hints[key], KeyPath((key,))) for key, value in tree.items()}
    return Recipe(name=name, variant=variant, stages=built, **rest)


def find_config(file: str) -> pathlib.Path:
    """The path of a config file, which may be given by the name of one that mmjax ships: "cos". Raises InputError if there is none."""
    path = pathlib.Path(file)
    if path.is_file():
        return path
    package = pathlib.Path(__file__).parents[1]
    # A wheel has them within the package, a checkout beside it.
    folder = package / "configs"
    folder = folder if folder.is_dir() else package.parent / "configs"
    shipped = {other.stem: other for other in sorted(folder.glob("*.py"))}
    if file in shipped:
        return shipped[file]
    near = sorted(map(str, path.parent.glob("*.py"))) if path.parent.is_dir() else []
    if file == path.name:
        near += shipped
    by_name = f"mmjax ships one as {path.stem!r}. " if path.stem in shipped else ""
    raise InputError(f"There is no config file {file!r}. {by_name}{suggestion(str(path), near)}")


def read_config(file: str, variant: str = "") -> ConfigDict:
    """What get_config of a config file returns. Raises InputError if there is no such file, or it fails."""
    path = find_config(file)

    def find_get_config() -> Callable[..., Any]:
        # The file is run as it stands now: no bytecode is kept of it, which would also be written beside the user's file.
        module = types.ModuleType(f"mmjax_config_{path.stem}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # dataclasses of the file look themselves up there
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(f"{path} has no function get_config(variant).")
        return module.get_config

    get_config = _run_file(path, find_get_config)
    config = _run_file(path, lambda: get_config(variant) if variant else get_config())
    if isinstance(config, Mapping):
        config = ConfigDict(config, sort_keys=False)
    if not isinstance(config, ConfigDict):
        raise InputError(f"{file}: get_config returned {type(config).__name__}, not a ConfigDict.")
    stages = config.get("stages")
    if isinstance(stages, ConfigDict) and len(stages) > 1 and getattr(stages, "_sort_keys", False):
        raise InputError(
            f"{file}: stages run in order, but a ConfigDict sorts its keys; use `config.stages = ConfigDict(sort_keys=False)`."
        )
    return config


def _run_file[T](path: pathlib.Path, call: Callable[[], T]) -> T:
    """Calls the user's own Python: what goes wrong in it is reported with its line."""
    try:
        return call()
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [
            frame.lineno
            for frame in frames
            if pathlib.Path(frame.filename).absolute() == path.absolute()
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else f"{path}"
        raise InputError(
            f"The config file fails: {where}: {type(error).__name__}: {error}"
        ) from None


def _override(config: ConfigDict, key: str, value: object) -> None:
    """Sets one value. A setting that the file leaves at its default need not be there; a stage or a source must."""
    *parents, last = key.split(".")
    place = config
    with config.unlocked(), config.ignore_type():
        for depth, name in enumerate(parents):
            _check_name(config, place, parents[:depth], name)
            if name not in place or place[name] is None:
                place[name] = ConfigDict()
            place = place[name]
            if not isinstance(place, ConfigDict):
                raise InputError(
                    f"config.{'.'.join(parents[: depth + 1])} is {place!r}, a single value; config.{key} would be a part of it."
                )
        _check_name(config, place, parents, last)
        if isinstance(place.get(last), ConfigDict):
            names = suggestion(str(value), place[last].keys())
            raise InputError(
                f"config.{key} is a group of settings, given one by one as --config.{key}.<name>=... {names}"
            )
        if isinstance(value, str) and last in place and place.get_type(last) in (int, float):
            # A number where the file has one, so that what the file computes from it follows; `convert` reads other text.
            try:
                number = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                number = value
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                value = number
        place[last] = value


def _check_name(config: ConfigDict, place: ConfigDict, keys: list[str], name: str) -> None:
    """Raises InputError if `place`, which stands at `keys`, has members with names of their own and none that is called so."""
    if not name:
        raise InputError(f"--config.{'.'.join(keys)}. has an empty part in its name.")
    if not keys or keys[-1] not in _KEYED_BY_NAME:
        return
    shared = keys[0] == "stages" and keys[2:3] and keys[2] in SHARED
    inherited = _at(config, keys[2:]) if shared else None
    names = [*place.keys(), *(inherited.keys() if isinstance(inherited, ConfigDict) else ())]
    if name in names:
        return
    # Stages may have what their shared settings lack.
    stages = config.get("stages")
    flags = [
        f"--config.{'.'.join(('stages', stage, *keys, name))}"
        for stage in (stages if isinstance(stages, Mapping | ConfigDict) else ())
        if _at(stages[stage], [*keys, name]) is not _ABSENT
    ]
    there = f" Stages have one of their own: {', '.join(flags)}..." if flags else ""
    raise InputError(f"config.{'.'.join(keys)} has no {name!r}. {suggestion(name, names)}{there}")


def _at(tree: Any, names: list[str]) -> Any:
    """The value at a path of a tree, or _ABSENT."""
    for name in names:
        if not isinstance(tree, Mapping | ConfigDict) or name not in tree:
            return _ABSENT
        tree = tree[name]
    return tree


def _merge(base: Any, over: Any) -> Any:
    """Two trees as one; `over` wins. A group of another `kind` takes the place of the whole group."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return copy.deepcopy(over)
    if "kind" in over and over["kind"] != base.get("kind"):
        return copy.deepcopy(dict(over))
    merged = {key: copy.deepcopy(value) for key, value in base.items()}
    return merged | {
        key: _merge(merged[key], value) if key in merged else copy.deepcopy(value)
        for key, value in over.items()
    }
