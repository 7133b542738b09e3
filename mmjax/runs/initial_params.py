"""What a stage begins with: fresh numbers, or what its transitions make of the stage before, with published weights in the place of either;
and the manifest, which says where every parameter came from."""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import Mesh

from mmjax import transitions
from mmjax.models import parameters
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.runs import initial_weights
from mmjax.runs.workdir import Workdir, write_json
from mmjax.training.state import InitialParams
from mmjax.transitions import Entry, Manifest
from mmjax.typing import Array, Params


def stage_key(recipe: Recipe, stage: str) -> Array:
    """The key of a stage's random numbers."""
    return jax.random.fold_in(jax.random.key(recipe.seed), list(recipe.stages).index(stage))


def stage_before(recipe: Recipe, stage: str) -> Stage | None:
    """The stage that another one begins after, or None."""
    index = list(recipe.stages).index(stage)
    return list(recipe.stages.values())[index - 1] if index else None


def initial_params(
    recipe: Recipe,
    stage: Stage,
    mesh: Mesh,
    workdir: Workdir,
    *,
    trained: Callable[[Stage, Collection[str]], Params],
    say: Callable[[str], None],
) -> InitialParams:
    """What a stage of a resolved recipe begins with. The manifest is written to the workdir and shown; what may not be meant is warned of.

    Args:
        trained: gives parameters of the stage before, by the paths that are needed of them. The stage consumes these arrays.

    Raises:
        InputError: a transition cannot be done, or published weights are missing, damaged or of another model.
    """
    before, key = stage_before(recipe, stage.name), stage_key(recipe, stage.name)
    if before is None:
        shapes = parameters.abstract(stage.model)[1]
        entries = (Entry.of(leaf, path, None, "fresh") for path, leaf in sorted(shapes.items()))
        manifest = Manifest(tuple(entries), stage.name)
        start = InitialParams({}, lambda _: parameters.initialize(stage.model, key))
    else:
        old, names, loaded = before.model, stage.transitions, stage.loaded_parts
        surrogates = [one for one in recipe.stages.values() if one.model.decoder.replaced_layers]
        cut_from = next(filter(None, (one.init_from.get("decoder") for one in surrogates)), None)
        target = stage.init_from.get("decoder")
        if "graft" in names and None not in (cut_from, target) and cut_from != target:
            say(
                f"WARNING: the surrogate of {stage.name} was cut from {cut_from}, and {target} is put in its place: unless they share "
                "their embeddings, it does not understand the encoder."
            )
        manifest = transitions.plan(names, old, stage.model, stage=stage.name, loaded=loaded)
        needed = {source for entry in manifest.entries for source in entry.sources}

        def make(given: Any) -> Params:
            return transitions.apply(
                names, given, old, stage.model, key, stage=stage.name, loaded=loaded
            )[0]

        start = InitialParams(trained(before, needed), make)
    if stage.init_from:
        start, manifest = initial_weights.load_into(start, manifest, stage, mesh, key, say)
    frozen = {
        entry.target: entry
        for entry in manifest.entries
        if entry.how == "fresh" and not parameters.matches(entry.target, stage.trainable)
    }
    if frozen and before is None:
        parts = ", ".join(sorted({path.split("/")[0] for path in frozen}))
        say(
            f"WARNING: {parameters.count(frozen):,} parameters of {stage.name} ({parts}) are random numbers and stay so: they are not "
            "trained, and no weights were loaded into them. What comes of it measures cost, not quality."
        )
    write_json(workdir.manifest(stage.name), manifest.to_json())
    say(f"{stage.name}: where its parameters come from\n{manifest.summary()}")
    return start
