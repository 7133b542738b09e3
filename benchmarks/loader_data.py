"""Image sets for the loader's benchmark: JSONL files beside folders of generated images."""

import dataclasses
import importlib.util
import json
import os
import pathlib

import numpy as np
from PIL import Image as Pillow
from synthetic import small

from mmjax.data.packing.rows import Rows, make_rows
from mmjax.data.sources.base import SourceConfig
from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import DataConfig

DISTINCT = 32  # images that are drawn; all others are further names of these files, and read as files of their own
TEXT_LENGTH = 112
EASY_VQA_SHARE = 0.1  # of the rows, where the package is there
FORMS = {"png": {"compress_level": 6}, "jpeg": {"quality": 90}}
_WORDS = (
    "a",
    "red",
    "small",
    "round",
    "large",
    "green",
    "old",
    "tree",
    "house",
    "dog",
    "on",
    "the",
    "under",
    "beside",
    "car",
    "sky",
    "two",
)


def image(width: int, height: int, seed: int) -> Pillow.Image:
    """Smooth areas with edges between them and a little noise: what decoders meet in photographs, roughly."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(
        Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC), np.int16
    )
    edges = 40 * (np.add.outer(np.arange(height) // 48, np.arange(width) // 64) % 2)[..., None]
    noise = random.normal(0, 4, (height, width, 1)).round().astype(np.int16)
    return Pillow.fromarray((smooth + edges + noise).clip(0, 255).astype(np.uint8))


def write_images(folder: pathlib.Path, form: str, size: tuple[int, int], count: int) -> list[str]:
    """Writes a folder of `count` names for up to DISTINCT images of width and height `size`; returns the names."""
    folder.mkdir(parents=True)
    names = [f"{number:06d}.{form}" for number in range(count)]
    for number, name in enumerate(names):
        if number < DISTINCT:
            image(*size, number).save(folder / name, form, **FORMS[form])
        else:
            os.link(folder / names[number % DISTINCT], folder / name)
    return names


def write_sources(
    folder: pathlib.Path, sources: int, form: str, size: tuple[int, int], images: int
) -> dict[str, JsonlSource]:
    """So many JSONL sources with about equal parts of `images` captioned images; their weights add up to 1."""
    found = {}
    for number in range(sources):
        image_dir = folder / f"source{number}"
        random = np.random.default_rng(number)
        path = folder / f"source{number}.jsonl"
        with path.open("w") as file:
            for name in write_images(image_dir, form, size, len(range(number, images, sources))):
                print(
                    json.dumps(
                        {"image": name, "text": f"{' '.join(random.choice(_WORDS, 12))} {name[:6]}"}
                    ),
                    file=file,
                )
        found[f"source{number}"] = JsonlSource(
            "jsonl", str(path), str(image_dir), weight=1 / sources
        )
    return found


def with_easy_vqa(sources: dict[str, JsonlSource]) -> dict[str, SourceConfig]:
    """The sources, and easy-vqa beside them where it is installed."""
    if importlib.util.find_spec("easy_vqa") is None:
        return dict(sources)
    weight = EASY_VQA_SHARE / (1 - EASY_VQA_SHARE)
    return {**sources, "easy_vqa": EasyVqaSource("easy_vqa", tasks=("caption",), weight=weight)}


def model(image_size: int) -> VLMConfig:
    """Of a model, rows need to know the pixels and the visual tokens."""
    config = small()
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, image_size=image_size)
    )


def make(sources: dict[str, SourceConfig], image_size: int) -> Rows:
    """Training rows of one image each, with a tokenizer of the sources' own words."""
    data = DataConfig(sources, text_length=TEXT_LENGTH, images_per_row=1)
    texts = (
        text for config in sources.values() for text in config.open(TEMPLATES["plain"]).texts()
    )
    return make_rows(data, model(image_size), WordTokenizer.build(texts), seed=0)
