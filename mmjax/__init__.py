"""Multimodal language models, trained in JAX.

    recipe = mmjax.load_recipe("cos", {"stages.pretrain.steps": 10})
    mmjax.train(recipe, "runs/short")
    mmjax.open_run("runs/short").answer("image.png", "what shape is present?")
    decoder = mmjax.weights.load_pretrained("path/to/folder or file.gguf")
    mmjax.kernels.attention(q, k, v, mask)

Nothing heavy is imported before one of these names is used. The process is prepared for jax then (`base.host.prepare`), so use one of them
before you import jax yourself.
"""

import sys

if sys.argv[:1] == ["-m"]:
    # For `python -m mmjax...`, of which this is the first line that runs: signals count from here on.
    from mmjax.base import signals

    signals.begin_module(sys.orig_argv)

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmjax import kernels, weights
    from mmjax.config.load import load_recipe
    from mmjax.runs.answer import open_run
    from mmjax.runs.run import train

__all__ = ["kernels", "load_recipe", "open_run", "train", "weights"]

_HOMES = {
    "load_recipe": ("mmjax.config.load", "load_recipe"),
    "open_run": ("mmjax.runs.answer", "open_run"),
    "train": ("mmjax.runs.run", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmjax.base import host

    host.prepare()
    if name not in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    module, attribute = _HOMES[name]
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
