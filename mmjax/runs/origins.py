"""What a run keeps, when it begins, of the models that its stages begin as: small files in its workdir. Once it has begun it needs these
models no more, not even to write what it has trained back as their families.

| file in origins/ | what |
|---|---|
| origins.json | of each stage the parts that it loads: family, settings that mmjax has no use for, context length, settings of generation |
| tokenizer/ | the published tokenizer of the recipe |
| STAGE/PART/ | licences |
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.base.files import atomic_directory, read_object
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import Tokenizer, WordTokenizer
from mmjax.data.text.tokenizer_files import keep_tokenizer, write_tokenizer
from mmjax.errors import InputError
from mmjax.fetch.downloads import resolved
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import RANDOM, Recipe, Stage
from mmjax.recipe.schema import KeyPath, convert
from mmjax.recipe.serialization import to_plain
from mmjax.runs.initial_weights import open_initial
from mmjax.runs.workdir import Workdir
from mmjax.weights.families.base import CONFIG, dumps
from mmjax.weights.generation import GENERATION, folders, generation_settings, with_ends
from mmjax.weights.pretrained_protocol import Origin
from mmjax.weights.vlm_checkpoint import DECODER

_FILE = "origins.json"
_LARGEST = 16 * 1024 * 1024  # bytes of it; lists of tokens that may not be generated can be long
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclasses.dataclass(frozen=True)
class Begun:
    """What a part of a stage's model began as.

    Attributes:
        origin: for writing it back; None: nobody published it.
        context_length: of a decoder, if it is known.
        generation: of a decoder, its settings of generation (mmjax.weights.generation), as JSON.
    """

    origin: Origin | None = None
    context_length: int | None = None
    generation: str = "{}"


def keep(recipe: Recipe, workdir: Workdir) -> None:
    """Keeps in the workdir of a run that begins what it needs of the models that its stages begin as. A run that has begun is left alone.

    Raises:
        InputError: one of them is missing or damaged, or does not fit its stage.
    """
    if workdir.origins.exists() or any(workdir.checkpoints.glob("*/*")):
        return
    for draft in workdir.path.glob(f".{workdir.origins.name}-*"):  # of a process that was killed
        shutil.rmtree(draft, ignore_errors=True)
    with atomic_directory(workdir.origins) as draft:
        draft.mkdir()
        tokenizer = recipe.tokenizer
        if tokenizer.kind == "huggingface" and tokenizer.path:
            keep_tokenizer(resolved(tokenizer.path, weights=False), draft / "tokenizer")
        found = {}
        for stage in recipe.stages.values():
            found[stage.name] = _opened(stage)
            for part, path in stage.init_from.items():
                if path != RANDOM:
                    _copy_licences(resolved(path), draft / stage.name / part)
        (draft / _FILE).write_text(dumps(to_plain(found)), encoding="utf-8")


def began_as(recipe: Recipe, workdir: Workdir, last: str) -> dict[str, Begun]:
    """What the parts of a stage began as: what a stage before it loaded counts until another one loads it again.

    Raises:
        InputError: the run has kept nothing, as it was begun by an older mmjax, and the models themselves are missing or damaged; or what
            was kept is damaged.
    """
    file = workdir.origins / _FILE
    kept = read_object(file, _LARGEST, "list of origins") if file.exists() else None
    found: dict[str, Begun] = {}
    for stage in recipe.stages.values():
        if kept is None:
            found |= _opened(stage)
        else:
            try:
                found |= convert(kept.get(stage.name), dict[str, Begun], KeyPath())
            except InputError as error:
                raise InputError(f"{file}: {error}") from None
        if stage.name == last:
            break
    return found


def _opened(stage: Stage) -> dict[str, Begun]:
    """By the parts that a stage loads, what their files say."""
    if not stage.init_from:
        return {}
    found = {}
    with open_initial(stage.init_from, stage.model) as weights:
        origins = {origin.part: origin for origin in weights.origins}
        for part, (path, opened) in weights.sources.items():
            begun = Begun(origins.get(part))
            if part == DECODER:
                length = getattr(opened.config, DECODER).context_length
                settings = generation_settings(resolved(path), opened.origins)
                begun = Begun(origins.get(part), length, json.dumps(settings))
            found[part] = begun
    return found


def _copy_licences(source: Path, target: Path) -> None:
    for folder in folders(source):
        for path in (path for pattern in _LICENCES for path in folder.glob(pattern)):
            if path.is_file():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / path.name)


def with_context(model: VLMConfig, stage: Stage, begun: Mapping[str, Begun]) -> VLMConfig:
    """The model of a stage with the context length of its decoder: its own, that of what it began as, or the longest row that it was
    trained on."""
    decoder, data = model.decoder, stage.data
    length = decoder.context_length or begun.get(DECODER, Begun()).context_length
    length = length or data.text_length + data.images_per_row * model.visual_tokens
    return dataclasses.replace(model, decoder=dataclasses.replace(decoder, context_length=length))


def generation_of(stage: Stage, tokenizer: Tokenizer, begun: Mapping[str, Begun]) -> dict[str, Any]:
    """The settings of generation of what a stage has trained: those that it began with, and the tokens with which it learned to end."""
    settings = json.loads(begun.get(DECODER, Begun()).generation)
    if isinstance(tokenizer, WordTokenizer):  # ids of another tokenizer mean nothing
        settings = {key: value for key, value in settings.items() if "token_id" not in key}
    stop = find_template(stage.data.template, tokenizer, labels=False).stop
    learned = tokenizer.eos if stop == "eos" else tokenizer.special(stop)
    bos = {"bos_token_id": tokenizer.bos} if tokenizer.has_bos else {}
    return bos | with_ends(settings, (tokenizer.eos, learned))


def write_licences(workdir: Workdir, recipe: Recipe, last: str, folder: Path) -> list[str]:
    """Puts into the folder of a model that a stage has trained the licences of what it began as: beside the parts, or those of a whole
    model beside them all. Returns the names of the files."""
    names = []
    for stage in recipe.stages:
        for path in sorted((workdir.origins / stage).glob("*/*")):
            place = folder / path.parent.name
            place = place if place.is_dir() else folder
            shutil.copyfile(path, place / path.name)
            names.append(str((place / path.name).relative_to(folder)))
        if stage == last:
            break
    return names


def write_beside_decoder(
    workdir: Workdir,
    recipe: Recipe,
    stage: Stage,
    tokenizer: Tokenizer,
    begun: Mapping[str, Begun],
    folder: Path,
) -> list[str]:
    """Puts beside a decoder that a stage has trained what belongs there: its tokenizer, and settings of generation, by which it ends where
    it learned to end, and where it did before. A config.json in the folder names the same ends.

    Returns the names of the files.
    """
    if isinstance(tokenizer, WordTokenizer):
        tokenizer.save(folder / "tokenizer.json")
        names = ["tokenizer.json"]
    else:
        write_tokenizer(workdir.tokenizer_path(recipe), folder)
        names = ["tokenizer.json", "tokenizer_config.json"]
    settings = generation_of(stage, tokenizer, begun)
    (folder / GENERATION).write_text(dumps(settings), encoding="utf-8")
    if (folder / CONFIG).is_file():
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tokens = {key: settings[key] for key in ("eos_token_id", "bos_token_id") if key in settings}
        (folder / CONFIG).write_text(dumps(config | tokens), encoding="utf-8")
    return [*names, GENERATION]
