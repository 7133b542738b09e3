"""Published weights as the parameters that a stage begins with: found, compared with the recipe, and read to where the mesh wants them."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from mmjax.distributed.mesh import parameter_shardings
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.models.config import (
    LanguageModelConfig,
    LayerRange,
    ModelConfig,
    VisionEncoderConfig,
    VLMConfig,
)
from mmjax.models.vit import resize_table
from mmjax.recipe.recipe import PARTS, RANDOM, Stage
from mmjax.training.state import InitialParams
from mmjax.transitions import Entry, Manifest
from mmjax.transitions.surrogate import describe, in_one_stack
from mmjax.typing import Array, Params
from mmjax.weights.load import Origin, Pretrained, open_pretrained
from mmjax.weights.pretrained_protocol import Cut

POSITION = "vision/position"
_BEFORE = "before:"  # marks parameters of the stage before, among those that were read

# Settings that say how fresh numbers are drawn, or nothing about the function.
_FREE = {"weight_std", "embedding_std", "query_std", "context_length", "parents"}
# Settings that may differ by part. Of an encoder fewer blocks are read, positions are resized, and what stands behind the features is left
# out; blocks lie in one stack in the file and in several in the recipe; of a decoder that is a surrogate, some are left out.
_FREE_OF_PART = {
    "vision": {"image_size", "layers", "final_norm", "pooling_head", "separate_last_layers"},
    "decoder": {"replaced_layers", "translators"},
}


class InitialWeights:
    """The open files of a stage's `init_from`, compared with its model. Use it as a context manager."""

    def __init__(self, model: VLMConfig, sources: Mapping[str, tuple[str, Pretrained]]):
        self.model, self._sources = model, sources
        self._shapes = {
            path: shape
            for path, shape in parameters.abstract(model)[1].items()
            if path.split("/")[0] in sources
        }
        for part, (path, opened) in sources.items():
            problems = list(
                _differences(part, _part_config(opened.config, part), _part_config(model, part))
            )
            problems += [
                f"{name} is in the recipe, but not in the file"
                for name in self._names(part).values()
                if name not in opened.shapes
            ]
            if problems:
                listed = "\n".join(f"  {line}" for line in problems[:8])
                raise InputError(
                    f"{path} is not the {part} of the recipe:\n{listed}\nThe recipe's settings must be those of the file."
                )

    def _paths(self, part: str) -> list[str]:
        """Parameters that the part's file has to give: all but low-rank updates, which begin fresh."""
        return [
            path
            for path in self._shapes
            if path.startswith(f"{part}/") and not path.endswith(("/lora_a", "/lora_b"))
        ]

    def _names(self, part: str) -> dict[str, str]:
        """The path of each of those in the file."""
        return {path: self._in_one_stack(path)[0] for path in self._paths(part)}

    def _in_one_stack(self, path: str) -> tuple[str, LayerRange | None]:
        part = path.split("/")[0]
        return (
            (path, None) if part == "connector" else in_one_stack(path, getattr(self.model, part))
        )

    @property
    def paths(self) -> dict[str, str]:
        """Where each parameter comes from: the path of the file, by the path of the parameter."""
        return {
            name: path for part, (path, _) in self._sources.items() for name in self._paths(part)
        }

    @property
    def origins(self) -> tuple[Origin, ...]:
        """What writing the parts back as their families needs."""
        return tuple(
            origin
            for part, (_, opened) in self._sources.items()
            for origin in opened.origins
            if origin.part == part
        )

    @property
    def notes(self) -> dict[str, str]:
        """What happens to a parameter on the way, by its path."""
        found = {}
        if self.model.decoder.replaced_layers:
            layer_ranges = {
                path: self._in_one_stack(path)[1]
                for path in self.paths
                if path.startswith("decoder/")
            }
            found = {
                path: describe(layer_range, self.model.decoder)
                for path, layer_range in layer_ranges.items()
                if layer_range is not None
            }
        before, after = self._grids()
        if before != after:
            found[POSITION] = (
                f"{before} x {before} to {after} x {after}, bicubic, half-pixel centres"
            )
        return found

    def read(
        self, shardings: Mapping[str, Sharding] | None, low: Sequence[str], dtype: Any
    ) -> Params:
        """The parameters, as they stand in the files: the position table may belong to another grid (`finish`).

        Args:
            shardings: by path; None: on the first device.
            low: paths whose matrices are stored in `dtype`, because they are not trained; the others are float32.

        Raises:
            InputError: a tensor has numbers that are not finite.
        """
        params: Params = {}
        for part, (_, opened) in self._sources.items():
            wanted = {
                name: opened.shapes[name] if name == POSITION else self._shapes[name]
                for name in self._paths(part)
            }
            layer_ranges = {path: self._in_one_stack(path) for path in wanted}
            cuts = {
                path: Cut(name, layer_range.start)
                for path, (name, layer_range) in layer_ranges.items()
                if layer_range is not None and name != path
            }
            placed = (
                None
                if shardings is None
                else {name: _fitting(shardings[name], shape) for name, shape in wanted.items()}
            )
            for chosen, kind in ((set(low), dtype), (set(wanted) - set(low), jnp.float32)):
                some = {name: shape for name, shape in wanted.items() if name in chosen}
                params |= opened.read(
                    some,
                    placed,
                    dtype=kind,
                    cuts={path: cut for path, cut in cuts.items() if path in some},
                )
        return params

    def finish(self, params: Params) -> Params:
        """The parameters as the model needs them. Pure."""
        before, after = self._grids()
        if before == after:
            return params
        return params | {
            POSITION: resize_table(
                params[POSITION], (before, before), (after, after), align_corners=False
            )
        }

    def _grids(self) -> tuple[int, int]:
        """Patches per side in the file and in the recipe."""
        after = self.model.vision.grid
        if "vision" not in self._sources:
            return after, after
        return _part_config(self._sources["vision"][1].config, "vision").grid, after

    def close(self) -> None:
        """Closes the files."""
        for _, opened in self._sources.values():
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_initial(weights: Mapping[str, str], model: VLMConfig) -> InitialWeights:
    """Opens the files of a stage's `init_from`.

    Args:
        weights: paths by part, "vision", "connector" and "decoder"; or "model" for all three, from one file or folder. A path may be
            "fetched:NAME", for what `python -m mmjax.fetch NAME` has brought; "random" names none.

    Raises:
        InputError: a file is missing or damaged, or does not hold what the recipe says.
    """
    with contextlib.ExitStack() as stack:
        named = {name: path for name, path in weights.items() if path != RANDOM}
        opened = {name: (path, stack.enter_context(_open(path))) for name, path in named.items()}
        parts = dict(_parts(opened))
        found = InitialWeights(model, parts)
        stack.pop_all()
        return found


def _open(path: str) -> Pretrained:
    return open_pretrained(resolved(path))


def check(stage: Stage) -> None:
    """Raises InputError, before anything is trained, if the files of a stage's `init_from` are not there or do not fit its model."""
    if stage.init_from:
        open_initial(stage.init_from, stage.model).close()


def begin(
    stage: Stage,
    start: InitialParams,
    manifest: Manifest,
    mesh: Mesh,
    key: Array,
    say: Callable[[str], None],
) -> tuple[InitialParams, Manifest]:
    """A stage's beginning with its `init_from` in the place of what `start` would give, and the manifest of that. What neither gives,
    because
    "random" is asked for, is drawn.

    Raises:
        InputError: a file is missing, damaged or does not fit, or has numbers that are not finite.
    """
    with open_initial(stage.init_from, stage.model) as weights:
        for part, path in stage.init_from.items():
            if path == RANDOM:
                continue
            say(f"{stage.name}: reading the {part} from {path}")
        shapes, axes = parameters.abstract(stage.model)[1], parameters.logical_axes(stage.model)
        places = parameter_shardings(shapes, axes, mesh)[0]
        frozen = [path for path in weights.paths if not parameters.matches(path, stage.trainable)]
        loaded = weights.read(places, frozen, jnp.dtype(stage.model.compute_dtype))
        sources, notes, finish = weights.paths, weights.notes, weights.finish
    assert not set(loaded) & {_BEFORE + path for path in start.given}
    given = {_BEFORE + path: value for path, value in start.given.items()} | loaded

    drawn = shapes.keys() - sources.keys() - {entry.target for entry in manifest.entries}

    def make(given: Params) -> Params:
        before = {
            path.removeprefix(_BEFORE): value
            for path, value in given.items()
            if path.startswith(_BEFORE)
        }
        fresh = (
            {
                path: value
                for path, value in parameters.initialize(stage.model, key).items()
                if path in drawn
            }
            if drawn
            else {}
        )
        return (
            start.make(before)
            | fresh
            | finish({path: value for path, value in given.items() if not path.startswith(_BEFORE)})
        )

    read = {
        path: Entry.of(shapes[path], path, source, "loaded", notes.get(path, ""))
        for path, source in sources.items()
    }
    fresh = {path: Entry.of(shapes[path], path, None, "fresh") for path in drawn}
    entries = {entry.target: entry for entry in manifest.entries} | fresh | read
    return InitialParams(given, make), dataclasses.replace(
        manifest, entries=tuple(entries[path] for path in sorted(entries))
    )


def _parts(
    opened: Mapping[str, tuple[str, Pretrained]],
) -> Iterator[tuple[str, tuple[str, Pretrained]]]:
    for name, (path, model) in opened.items():
        for part in PARTS if name == "model" else (name,):
            if part in opened and name == "model":
                continue  # a part that is named on its own comes from there
            if _part_config(model.config, part) is None:
                raise InputError(f"{path} has no {part}.")
            yield part, (path, model)


def _part_config(config: ModelConfig, part: str) -> Any:
    """The config of a part; None if the model has no such part."""
    match config, part:
        case (VLMConfig(), _):
            return getattr(config, part)
        case (LanguageModelConfig(), "decoder"):
            return config.decoder
        case (VisionEncoderConfig(), "vision"):
            return config.vision
    return None


def _differences(part: str, file: Any, recipe: Any) -> Iterator[str]:
    """Settings in which a file and a recipe disagree."""
    if type(file) is not type(recipe):
        yield f"model.{part}.kind is {recipe.kind} in the recipe and {file.kind} in the file"
        return
    free = _FREE | _FREE_OF_PART.get(part, set())
    for field in dataclasses.fields(recipe):
        ours, theirs = getattr(recipe, field.name), getattr(file, field.name)
        if field.name not in free and not _same(ours, theirs):
            yield f"model.{part}.{field.name} is {ours} in the recipe and {theirs} in the file"
    if part == "vision" and recipe.layers > file.layers:
        yield f"model.vision.layers is {recipe.layers} in the recipe and {file.layers} in the file"


def _same(first: object, second: object) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-5)  # GGUF files round settings to float32
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


def _fitting(sharding: Sharding, shape: jax.ShapeDtypeStruct) -> Sharding:
    """The sharding, or whole on every device for a position table whose size does not divide."""
    try:
        sharding.shard_shape(shape.shape)
    except ValueError:
        assert isinstance(sharding, jax.sharding.NamedSharding)
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding
