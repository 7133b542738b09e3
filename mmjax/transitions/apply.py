"""From the parameters of one stage to those of the next: named transitions in order, then a check that every parameter is accounted for."""

import dataclasses
from collections.abc import Collection, Iterable

import jax
import jax.numpy as jnp

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.recipe.schema import choose
from mmjax.transitions import completeness
from mmjax.transitions.base import transitions
from mmjax.transitions.manifest import Entry, Manifest
from mmjax.typing import Array, Params


def apply(
    names: Iterable[str],
    params: Params,
    old: VLMConfig,
    new: VLMConfig,
    key: Array,
    *,
    stage: str,
    loaded: Collection[str] = (),
) -> tuple[Params, Manifest]:
    """The parameters with which a stage begins. Nothing is left at a default and nothing is dropped unsaid: the manifest has it all.

    Args:
        names: of transitions (keys of `transitions()`), applied in this order; what none of them touches is carried over as the same array.
        params: of the stage before, by path.
        old, new: models of the stage before and of this one.
        key: of `jax.random.key`, for what is initialized.
        stage: name of the stage that begins, for the manifest and for messages.
        loaded: parts of the model ("vision", "connector", "decoder") that are read from files afterwards, so that they may be missing.

    Raises:
        InputError: there is no such transition, or it cannot be done (see each); or afterwards a parameter of `new` is missing, has another
            shape or is unknown; each message names the transition that would help.
    """
    names, given, known = tuple(names), params, transitions()
    origins: dict[str, Entry] = {}
    for index, name in enumerate(names):
        try:
            params, entries = choose(name, known, "transition").apply(
                params, old, new, jax.random.fold_in(key, index)
            )
        except InputError as error:
            raise InputError(f"stage {stage!r}, transition {name!r}: {error}") from None
        origins |= {entry.target: _from_start(entry, origins) for entry in entries}
    try:
        completeness.check(params, names, old, new, loaded)
    except InputError as error:
        raise InputError(f"stage {stage!r}: {error}") from None
    all_entries = tuple(
        origins.get(path) or Entry.of(value, path, path, "copied")
        for path, value in sorted(params.items())
    )
    used = {source for entry in all_entries for source in entry.sources}
    return params, Manifest(all_entries, stage, names, tuple(sorted(given.keys() - used)))


def plan(
    names: Iterable[str],
    old: VLMConfig,
    new: VLMConfig,
    *,
    stage: str,
    loaded: Collection[str] = (),
) -> Manifest:
    """The manifest that `apply` will return, from the two models alone: no parameter is computed. Raises InputError as `apply` would."""
    manifests = []

    def run(params: Params, seed: Array) -> Params:
        params, manifest = apply(
            names, params, old, new, jax.random.key(seed), stage=stage, loaded=loaded
        )
        manifests.append(manifest)
        return params

    jax.eval_shape(run, parameters.abstract(old)[1], jax.ShapeDtypeStruct((), jnp.uint32))
    return manifests[0]


def _from_start(entry: Entry, origins: dict[str, Entry]) -> Entry:
    """The entry told from the stage before, where its source was itself made by an earlier transition."""
    before = origins.get(entry.source or "")
    if before is None:
        return entry
    how = before.how if entry.how == "copied" else entry.how
    return dataclasses.replace(
        entry,
        source=before.source,
        how=how,
        note="; ".join(filter(None, (before.note, entry.note))),
    )
