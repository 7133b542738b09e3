"""The transformers package, imported where it is first needed: that takes about a second, and most runs never need it."""

import importlib
import logging
from types import ModuleType


def transformers() -> ModuleType:
    """The package, of which mmjax uses tokenizers, configurations and image processors. They need no PyTorch, so the advice that it is
    missing is not shown."""
    logger = logging.getLogger("transformers")
    if _not_about_torch not in logger.filters:
        logger.addFilter(_not_about_torch)
    return importlib.import_module("transformers")


def _not_about_torch(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("PyTorch was not found")
