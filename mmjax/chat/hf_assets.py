"""Files beside published weights: the tokenizer, the tokens that end an answer, and how images are prepared."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmjax.base.huggingface import IMAGES, image_settings
from mmjax.data.images.decode import load_image
from mmjax.data.images.processor import open_image_processor
from mmjax.data.text.tokenizer import Tokenizer, WordTokenizer, open_tokenizer
from mmjax.errors import InputError
from mmjax.models.config import LanguageModelConfig, VLMConfig
from mmjax.weights import generation
from mmjax.weights.families.base import ConfigJson
from mmjax.weights.pretrained_protocol import Origin
from mmjax.weights.vlm_checkpoint import VISION

_WORDS = '"mmjax-words"'
_BEGINNING = 200  # characters of a tokenizer.json that say whether it is one of words


def find_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of weights: in the same file or folder, or with the decoder of a whole model, or in the run that was exported.

    Raises InputError if there is none, or it cannot be read.
    """
    if path.is_file() and path.suffix not in (".safetensors", ".json"):
        return open_tokenizer(path)
    for folder in generation.folders(path):
        if os.path.lexists(folder / "tokenizer.json"):
            return named_tokenizer(folder / "tokenizer.json")
        if os.path.lexists(folder / "tokenizer.model") or any(folder.glob("*.gguf")):
            return named_tokenizer(folder)
    raise InputError(
        f"There is no tokenizer beside {path}: neither tokenizer.json nor tokenizer.model. --tokenizer=PATH names one."
    )


def named_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file or a folder: of a published model, or one of words. Raises InputError if there is none."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.suffix == ".json" and file.is_file():
        with file.open(encoding="utf-8", errors="replace") as stream:
            if _WORDS in stream.read(_BEGINNING):
                return WordTokenizer.load(file)
    return open_tokenizer(path)


def end_tokens(path: Path, origins: Sequence[Origin] = ()) -> tuple[int, ...]:
    """The tokens that the model's own settings of generation name as ends, if there are any.

    Raises InputError if a file of settings is damaged.
    """
    return generation.end_tokens(
        ConfigJson(generation.generation_settings(path, origins), str(path))
    )


def unread_settings(path: Path) -> tuple[str, ...]:
    """Notes for the user on what the settings of generation ask for and is not done."""
    if not generation.generation_settings(path).get("stop_strings"):
        return ()
    return (
        f"{generation.GENERATION} names stop_strings; answers do not end at texts, but at tokens.",
    )


def image_loader(
    path: Path, config: LanguageModelConfig | VLMConfig
) -> tuple[Callable[[Path], np.ndarray], tuple[str, ...]]:
    """What makes pixels of an image file, and notes on it for the user. A decoder reads no images.

    Raises InputError if the folder's settings of images ask for something that mmjax does not do.
    """
    if not isinstance(config, VLMConfig):

        def refuse(source: Path) -> np.ndarray:
            raise InputError(f"This model is a decoder alone and cannot look at {source}.")

        return refuse, ()
    size = config.vision.image_size
    place = path if path.is_dir() else path.absolute().parent
    found = next(filter(None, map(image_settings, (place, place / VISION))), None)
    if found is None:
        note = f"There is no {IMAGES}: images are stretched to {size} x {size} pixels, whatever their shape."
        return lambda source: load_image(source, size), (note,)
    file, processor = found[0], open_image_processor(found[0])

    def load(source: Path) -> np.ndarray:
        pixels = processor.load(source)
        if pixels.shape != (size, size, 3):
            made = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise InputError(
                f"{file} makes an image of {made} pixels of {source}; the encoder reads {size} x {size}."
            )
        return pixels

    return load, ()
