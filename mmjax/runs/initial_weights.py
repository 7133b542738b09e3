"""Published weights that a stage begins with: found, compared with the recipe, and read to where the mesh wants them."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.models.config import NOT_OF_THE_FUNCTION, VLMConfig
from mmjax.models.vit import resize_table
from mmjax.recipe.recipe import PARTS, RANDOM, Stage
from mmjax.recipe.schema import ABSENT, differences
from mmjax.training.state import InitialParams, param_shardings
from mmjax.transitions import Entry, Manifest
from mmjax.transitions.surrogate import describe, in_one_stack
from mmjax.typing import Array, Params
from mmjax.weights.load import open_pretrained
from mmjax.weights.pretrained_protocol import Cut, Origin, Pretrained

POSITION = "vision/position"

# Settings that may differ by part. Of an encoder fewer blocks are read, positions are resized, and what stands behind the features is
# skipped; blocks lie in one stack in the file and in several in the recipe; of a decoder that is a surrogate, some are removed.
_FREE_OF_PART = {
    "vision": {"image_size", "layers", "final_norm", "pooling_head", "separate_last_layers"},
    "decoder": {"replaced_layers", "translators"},
}


class InitialWeights:
    """The open files of a stage's `init_from`, compared with its model. Use it as a context manager.

    Attributes:
        paths: where each parameter comes from: the path of the file, by the path of the parameter. Low-rank updates, which begin fresh, are
            not among them.
    """

    def __init__(self, model: VLMConfig, sources: Mapping[str, tuple[str, Pretrained]]):
        """sources: by part, the path of its file and the open file. Raises InputError if a file does not hold what the model says."""
        self._model, self._sources = model, sources
        self._shapes = {
            path: shape
            for path, shape in parameters.abstract(model)[1].items()
            if path.split("/")[0] in sources and not path.endswith(("/lora_a", "/lora_b"))
        }
        # Where each parameter stands in the file, in which all blocks of a part lie in one stack; and which of them it is.
        self._places = {
            path: (path, None)
            if path.startswith("connector/")
            else in_one_stack(path, getattr(model, path.split("/")[0]))
            for path in self._shapes
        }
        self.paths = {path: sources[path.split("/")[0]][0] for path in self._shapes}
        # Patches per side in the file and in the recipe.
        self._grids = model.vision.grid, model.vision.grid
        free = {"connector": model.connector.not_of_the_function}
        for part, (file, opened) in sources.items():
            wanted, found = getattr(model, part), getattr(opened.config, part)
            problems = [
                f"{path} is {here} in the recipe and {there} in the file"
                for path, here, there in differences(
                    wanted,
                    found,
                    path=f"model.{part}",
                    ignored={*_FREE_OF_PART.get(part, ()), *free.get(part, NOT_OF_THE_FUNCTION)},
                    tolerance=1e-5,  # GGUF files round settings to float32
                )
                if ABSENT not in (here, there)
            ]
            if part == "vision":
                self._grids = found.grid, wanted.grid
                if wanted.layers > found.layers:
                    problems.append(
                        f"model.vision.layers is {wanted.layers} in the recipe and {found.layers} in the file"
                    )
            problems += [
                f"{name} is in the recipe, but not in the file"
                for path, (name, _) in self._places.items()
                if path.split("/")[0] == part and name not in opened.shapes
            ]
            if problems:
                listed = "\n".join(f"  {line}" for line in problems[:8])
                raise InputError(
                    f"{file} is not the {part} of the recipe:\n{listed}\nThe recipe's settings must be those of the file."
                )

    @property
    def sources(self) -> Mapping[str, tuple[str, Pretrained]]:
        """By part, the path of its file and the open file."""
        return self._sources

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
        found, decoder = {}, self._model.decoder
        for path, (_, layer_range) in self._places.items():
            if decoder.replaced_layers and path.startswith("decoder/") and layer_range is not None:
                found[path] = describe(layer_range, decoder)
        before, after = self._grids
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
                path: opened.shapes[path] if path == POSITION else shape
                for path, shape in self._shapes.items()
                if path.split("/")[0] == part
            }
            placed = None if shardings is None else {path: shardings[path] for path in wanted}
            if placed is not None and POSITION in placed:
                place = placed[POSITION]
                try:
                    place.shard_shape(wanted[POSITION].shape)
                except ValueError:
                    # The table of another grid may not divide: then it is whole on every device.
                    assert isinstance(place, NamedSharding)
                    placed[POSITION] = NamedSharding(place.mesh, PartitionSpec())
            for chosen, kind in ((set(low), dtype), (wanted.keys() - set(low), jnp.float32)):
                cuts = {}
                for path in wanted.keys() & chosen:
                    name, layer_range = self._places[path]
                    if layer_range is not None and name != path:
                        cuts[path] = Cut(name, layer_range.start)
                some = {path: shape for path, shape in wanted.items() if path in chosen}
                params |= opened.read(some, placed, dtype=kind, cuts=cuts)
        return params

    def finish(self, params: Params) -> Params:
        """The parameters as the model needs them. Pure."""
        before, after = self._grids
        if before == after:
            return params
        table = resize_table(
            params[POSITION], (before, before), (after, after), align_corners=False
        )
        return params | {POSITION: table}

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
            "fetched:NAME", for what `python -m mmjax.fetch NAME` has brought; "hf:OWNER/NAME", for a model of the Hugging Face Hub;
            "random" names none.

    Raises:
        InputError: a file is missing or damaged, or does not hold what the recipe says.
    """
    with contextlib.ExitStack() as stack:
        opened = {
            name: (path, stack.enter_context(open_pretrained(resolved(path))))
            for name, path in weights.items()
            if path != RANDOM
        }
        sources = {}
        for name, (path, pretrained) in opened.items():
            for part in PARTS if name == "model" else (name,):
                if name == "model" and part in opened:
                    continue  # a part that is named on its own comes from there
                if getattr(pretrained.config, part, None) is None:
                    raise InputError(f"{path} has no {part}.")
                sources[part] = (path, pretrained)
        found = InitialWeights(model, sources)
        stack.pop_all()
        return found


def check(stage: Stage) -> None:
    """Raises InputError, before anything is trained, if the files of a stage's `init_from` are not there or do not fit its model."""
    open_initial(stage.init_from, stage.model).close()


def load_into(
    start: InitialParams,
    manifest: Manifest,
    stage: Stage,
    mesh: Mesh,
    key: Array,
    say: Callable[[str], None],
) -> tuple[InitialParams, Manifest]:
    """The beginning `start` of a stage with what its `init_from` names in place of the same parameters there, and the manifest of that.
    Parameters that neither gives, because "random" is asked for, are drawn.

    Raises:
        InputError: a file is missing, damaged or does not fit, or has numbers that are not finite.
    """
    with open_initial(stage.init_from, stage.model) as weights:
        for part, path in stage.init_from.items():
            if path != RANDOM:
                say(f"{stage.name}: reading the {part} from {path}")
        frozen = [path for path in weights.paths if not parameters.matches(path, stage.trainable)]
        places = param_shardings(stage.model, mesh)
        loaded = weights.read(places, frozen, jnp.dtype(stage.model.compute_dtype))
    shapes = parameters.abstract(stage.model)[1]
    drawn = shapes.keys() - weights.paths.keys() - {entry.target for entry in manifest.entries}

    def make(given: tuple[Any, Params]) -> Params:
        before, read = given
        fresh = parameters.initialize(stage.model, key) if drawn else {}
        return (
            start.make(before)
            | {path: value for path, value in fresh.items() if path in drawn}
            | weights.finish(read)
        )

    entries = {entry.target: entry for entry in manifest.entries}
    for path in drawn:
        entries[path] = Entry.of(shapes[path], path, None, "fresh")
    notes = weights.notes
    for path, source in weights.paths.items():
        entries[path] = Entry.of(shapes[path], path, source, "loaded", notes.get(path, ""))
    in_order = tuple(entries[path] for path in sorted(entries))
    return InitialParams((start.given, loaded), make), dataclasses.replace(
        manifest, entries=in_order
    )
