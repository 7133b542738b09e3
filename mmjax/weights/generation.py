"""How a published model is meant to generate: generation_config.json, or what config.json says where there is none, as in transformers."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmjax.weights.families.base import CONFIG, ConfigJson, read_config
from mmjax.weights.pretrained_protocol import Origin
from mmjax.weights.vlm_checkpoint import DECODER

GENERATION = "generation_config.json"
_ENDS = "eos_token_id"
_IDS = (_ENDS, "bos_token_id", "pad_token_id")
_DECODERS = (
    "decoder",
    "generator",
    "text_config",
)  # of a config.json; the first that is there counts


def folders(path: Path) -> Iterator[Path]:
    """Where files beside the weights of a decoder are looked for: in their folder, with the decoder of a whole model, or in the run that
    was exported."""
    folder = path if path.is_dir() else path.absolute().parent
    yield from (folder, folder / DECODER)
    if folder.absolute().parent.name == "export":
        yield folder.absolute().parents[1]


def generation_settings(path: Path, origins: Sequence[Origin] = ()) -> dict[str, Any]:
    """The settings of generation of a model in a file or a folder: those of generation_config.json; or the special tokens that config.json
    names, within which those of the whole come before those of the text model; or those that are known of the model's origins.

    Raises:
        InputError: a file is damaged, or names ends that are no token's id nor a list of them.
    """
    for each in folders(path):
        if os.path.lexists(each / GENERATION):
            settings = read_config(each, GENERATION)
            end_tokens(settings)
            return dict(settings.content)
    found: dict[str, Any] = {}
    folder = next((each for each in folders(path) if os.path.lexists(each / CONFIG)), None)
    if folder is not None:
        settings = read_config(folder)
        inner = (settings.part(name) for name in _DECODERS)
        decoder = next((part for part in inner if part.content), settings)
        for part in (decoder, settings):
            end_tokens(part)
            found |= {key: part.content[key] for key in _IDS if key in part}
    if not found:
        for origin in origins:
            if origin.part == DECODER:
                kept = ConfigJson(json.loads(origin.kept), str(path))
                end_tokens(kept)
                found |= {key: kept.content[key] for key in _IDS if key in kept}
    return found


def end_tokens(settings: ConfigJson) -> tuple[int, ...]:
    """The tokens that settings name as ends. Raises InputError if they are no tokens."""
    named = settings.content.get(_ENDS)
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(index) is int for index in ids):
        raise settings.wrong(_ENDS, named, "a token's id or a list of them")
    return tuple(ids)


def with_ends(settings: dict[str, Any], more: Iterable[int]) -> dict[str, Any]:
    """Settings in which these tokens are ends too, behind those that are there."""
    ends = list(dict.fromkeys((*end_tokens(ConfigJson(settings, GENERATION)), *more)))
    # A file that says to be made from config.json may be made anew.
    kept = {key: value for key, value in settings.items() if key != "_from_model_config"}
    return kept | {_ENDS: ends[0] if len(ends) == 1 else ends}
