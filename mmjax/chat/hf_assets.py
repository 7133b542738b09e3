"""Files beside published weights: the tokenizer, the tokens that end an answer, and how images are prepared."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mmjax.data.images.decode import load_image
from mmjax.data.images.processor import NAME as PROCESSOR
from mmjax.data.images.processor import open_image_processor
from mmjax.data.text.tokenizer import Tokenizer, WordTokenizer, open_tokenizer
from mmjax.errors import InputError
from mmjax.models.config import LanguageModelConfig, VLMConfig
from mmjax.weights.families.base import read_config
from mmjax.weights.vlm_checkpoint import DECODER, VISION

GENERATION = "generation_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "*.gguf")
_WORDS = '"mmjax-words"'
_BEGINNING = 200  # characters of a tokenizer.json that say whether it is one of words


def find_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of weights: in the same file or folder, or with the decoder of a whole model, or in the run that was exported.

    Raises InputError if there is none, or it cannot be read.
    """
    if path.is_file() and path.suffix not in (".safetensors", ".json"):
        return open_tokenizer(path)
    for folder in _folders(path):
        found = next((file for name in _TOKENIZERS for file in folder.glob(name)), None)
        if found is not None:
            return named_tokenizer(found if found.name == "tokenizer.json" else folder)
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


def _folders(path: Path) -> Iterator[Path]:
    folder = path if path.is_dir() else path.absolute().parent
    yield from (folder, folder / DECODER)
    if folder.absolute().parent.name == "export":
        yield folder.absolute().parents[1]


def end_tokens(path: Path) -> tuple[int, ...]:
    """The tokens that the model's own settings of generation name as ends, if there are any.

    Raises InputError if generation_config.json is damaged.
    """
    folder = next((folder for folder in _folders(path) if (folder / GENERATION).exists()), None)
    if folder is None:
        return ()
    settings = read_config(folder, GENERATION)
    named = settings.content.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    if not all(type(index) is int for index in ids):
        raise settings.wrong("eos_token_id", named, "a token's id or a list of them")
    return tuple(ids)


def image_loader(
    path: Path, config: LanguageModelConfig | VLMConfig
) -> tuple[Callable[[Path], np.ndarray], tuple[str, ...]]:
    """What makes pixels of an image file, and notes on it for the user. A decoder reads no images.

    Raises InputError if preprocessor_config.json asks for something that mmjax does not do.
    """
    if not isinstance(config, VLMConfig):

        def refuse(source: Path) -> np.ndarray:
            raise InputError(f"This model is a decoder alone and cannot look at {source}.")

        return refuse, ()
    size = config.vision.image_size
    folder = next(
        (folder for folder in (path, path / VISION) if (folder / PROCESSOR).exists()), None
    )
    if folder is None:
        note = f"There is no {PROCESSOR}: images are stretched to {size} x {size} pixels, whatever their shape."
        return lambda source: load_image(source, size), (note,)
    processor = open_image_processor(folder)

    def load(source: Path) -> np.ndarray:
        pixels = processor.load(source)
        if pixels.shape != (size, size, 3):
            made = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise InputError(
                f"{folder / PROCESSOR} makes an image of {made} pixels of {source}; the encoder reads {size} x {size}."
            )
        return pixels

    return load, ()
