"""The transformers package, imported where it is first needed: that takes about a second, and most runs never need it. And where it looks
for the settings of images in a folder."""

import importlib
import logging
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mmjax.base.files import read_object
from mmjax.errors import InputError

PROCESSOR, IMAGES, MODEL = "processor_config.json", "preprocessor_config.json", "config.json"


def transformers() -> ModuleType:
    """The package, of which mmjax uses tokenizers, configurations and image processors. They need no PyTorch, so the advice that it is
    missing is not shown."""
    logger = logging.getLogger("transformers")
    if _not_about_torch not in logger.filters:
        logger.addFilter(_not_about_torch)
    return importlib.import_module("transformers")


def _not_about_torch(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("PyTorch was not found")


def image_settings(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that says how images are prepared, and what it says; None if there is none.

    Args:
        path: one of the files, or their folder. There "image_processor" in processor_config.json, where transformers 5 writes these
            settings, comes before preprocessor_config.json, as in transformers.

    Raises:
        InputError: a file is damaged.
    """
    for file in (path / PROCESSOR, path / IMAGES) if path.is_dir() else (path,):
        if not os.path.lexists(file):
            continue
        content = read_object(file, what="list of settings for images")
        if file.name == PROCESSOR:
            inner = content.get("image_processor")
            if inner is None:
                continue  # older ones have settings of other things only
            if not isinstance(inner, dict):
                raise InputError(f"{file}: image_processor is not an object.")
            content = inner
        return file, content
    return None


def image_processor_class(file: Path, content: dict[str, Any]) -> tuple[str, Any]:
    """The name of the image processor that settings are for, "" if nothing says it, and its class in transformers or None: of those that
    do the same, the one that uses Pillow.

    Args:
        file, content: as of `image_settings`. Settings without a name are for the one of the model in config.json beside them.

    Raises:
        InputError: that config.json is damaged.
    """
    name = content.get("image_processor_type") or content.get("feature_extractor_type")
    if not name and os.path.lexists(config := file.with_name(MODEL)):
        model = read_object(config)
        name = model.get("image_processor_type")
        if not name:
            named = importlib.import_module("transformers.models.auto.image_processing_auto")
            classes = named.IMAGE_PROCESSOR_MAPPING_NAMES.get(model.get("model_type"))
            name = classes.get("pil") if isinstance(classes, dict) else None
    stem = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(name or ""))
    return str(name or ""), getattr(transformers(), f"{stem}ImageProcessorPil", None)
