"""An encoder that was trained on a surrogate, and the language model that the surrogate was cut from, as one model on disk."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Sharding, SingleDeviceSharding
from rich.console import Console

from mmjax import transitions
from mmjax.base.files import atomic_directory, check_free
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig, VLMConfig
from mmjax.port.port import port
from mmjax.recipe.recipe import Recipe, Stage
from mmjax.runs.export import stretch
from mmjax.runs.origins import began_as
from mmjax.runs.workdir import Workdir, read_params
from mmjax.training.logging import print_line
from mmjax.transitions import Entry, Manifest
from mmjax.weights.families.base import CONFIG, IMAGES
from mmjax.weights.load import form_of, open_pretrained
from mmjax.weights.pretrained_protocol import Pretrained
from mmjax.weights.save import save_params
from mmjax.weights.vlm_checkpoint import CONNECTOR, DECODER, VISION

EMBEDDING, KERNEL = "decoder/embedding", "attention/query/kernel"
# Of a decoder's folder, these are not copied: other forms of the same weights, pickles.
_SKIPPED = ("*.pth", "*.pt", "*.bin", "original", ".git", ".cache")


def graft(encoder: Path, decoder: str, out: Path, console: Console) -> None:
    """Writes the whole model to `out`; arguments as those of `python -m mmjax.graft`.

    Raises:
        InputError: a folder is not what it should be, the surrogate was not cut from the decoder, or `out` cannot be written. Nothing is
            written then.
    """
    check_free(out)
    recipe, stage, checkpoint = find_surrogate(encoder)
    folder = resolved(decoder)
    with open_pretrained(folder) as target:
        if not isinstance(target.config, LanguageModelConfig):
            raise InputError(f"{decoder} is not a language model on its own.")
        model = dataclasses.replace(stage.model, decoder=target.config.decoder)
        manifest = plan(stage, model, decoder)
        _check_shared(recipe, stage, checkpoint, target, decoder)
    begun = began_as(recipe, Workdir(checkpoint.parents[2]), stage.name)
    with atomic_directory(out) as draft:
        # Of the checkpoint, encoder and connector are read; a decoder of transformers is copied as it is.
        paths = parameters.abstract(stage.model)[1]
        taken = [path for path in paths if not path.startswith("decoder/")]
        save_params(
            read_params(checkpoint, recipe, dict.fromkeys(taken, _first_device())),
            model,
            draft,
            origins=[part.origin for part in begun.values() if part.origin is not None],
            parts=(VISION, CONNECTOR),
        )
        if stage.data.resize == "stretch":
            stretch(draft / VISION / IMAGES)
        if (folder / CONFIG).is_file() and form_of(folder) != "orbax":
            ignore = shutil.ignore_patterns(*_SKIPPED)
            shutil.copytree(folder, draft / DECODER, ignore=ignore)
        else:
            quiet = Console(file=io.StringIO())
            port(str(folder), draft / DECODER, quiet, to="huggingface")
        text = json.dumps(manifest.to_json(), indent=1) + "\n"
        (draft / "manifest.json").write_text(text, encoding="utf-8")
    print_line(console, manifest.summary())
    if int(checkpoint.name) < stage.steps:
        print_line(
            console,
            f"WARNING: stage {stage.name!r} has not finished: this is its step {checkpoint.name} of {stage.steps}.",
        )
    print_line(console, f"{out} is ready: what {checkpoint} has learned, before {decoder}")


def find_surrogate(path: Path) -> tuple[Recipe, Stage, Path]:
    """The recipe of a run, with a vocabulary for its tokenizer; stage and folder of its newest checkpoint with a surrogate, or of the
    given one.

    Args:
        path: a workdir, or checkpoints/STAGE/STEP in one.

    Raises:
        InputError: there is none.
    """
    path = path.absolute()
    given = path if path.name.isdecimal() and path.parent.parent.name == "checkpoints" else None
    workdir = Workdir(path.parents[2] if given is not None else path)
    recipe = workdir.recipe()
    surrogates = [stage for stage in recipe.stages.values() if stage.model.decoder.replaced_layers]
    if given is None:
        saved = [stage for stage in surrogates if workdir.newest_step(stage.name) is not None]
        if not saved:
            names = ", ".join(stage.name for stage in surrogates)
            why = f"its stages {names} have saved none"
            if not surrogates:
                why = "none of its stages has a decoder with blocks replaced"
            raise InputError(f"{path} has no checkpoint of a surrogate: {why}.")
        given = workdir.checkpoints / saved[-1].name / str(workdir.newest_step(saved[-1].name))
    stage, folder = workdir.find_checkpoint(recipe, str(given))
    if stage not in surrogates:
        raise InputError(
            f"{path} is of stage {stage.name!r}, whose decoder is no surrogate: there is nothing to graft."
        )
    return recipe, stage, folder


def plan(stage: Stage, model: VLMConfig, decoder: str) -> Manifest:
    """Where every parameter of the whole model comes from. Raises InputError if the surrogate was cut from another decoder."""
    manifest = transitions.plan(("graft",), stage.model, model, stage="graft", loaded={"decoder"})
    shapes = parameters.abstract(model)[1]
    loaded = [
        Entry.of(shape, path, decoder, "loaded")
        for path, shape in shapes.items()
        if path.startswith("decoder/")
    ]
    return dataclasses.replace(
        manifest,
        entries=tuple(sorted((*manifest.entries, *loaded), key=lambda entry: entry.target)),
    )


def _check_shared(
    recipe: Recipe, stage: Stage, checkpoint: Path, target: Pretrained, decoder: str
) -> None:
    """Raises InputError if surrogate and target differ in their embeddings or in their first block: then they are not of one model."""
    names = {EMBEDDING: EMBEDDING}
    if stage.model.decoder.layer_ranges[0].path == "kept_layers/0/layers":
        names[f"decoder/kept_layers/0/layers/{KERNEL}"] = f"decoder/layers/{KERNEL}"
    trained = read_params(checkpoint, recipe, dict.fromkeys(names, _first_device()))
    for path, name in names.items():
        shape = jax.ShapeDtypeStruct(trained[path].shape, trained[path].dtype)
        published = target.read({name: shape}, dtype=shape.dtype)[name]
        if not bool(jnp.array_equal(trained[path], published)):
            what = "embeddings" if path == EMBEDDING else "blocks"
            raise InputError(
                f"The surrogate in {checkpoint} was not cut from {decoder}: their {what} differ, so the encoder has learned to "
                "speak to another model."
            )


def _first_device() -> Sharding:
    return SingleDeviceSharding(jax.devices()[0])
