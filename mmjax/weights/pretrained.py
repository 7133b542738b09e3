"""Models by path, in every form that mmjax reads."""

from pathlib import Path

from mmjax.weights.opened import Line, Origin, Pretrained, Progress
from mmjax.weights.orbax_folder import is_orbax, open_orbax
from mmjax.weights.published import open_published
from mmjax.weights.whole import is_whole, open_whole

__all__ = ["Line", "Origin", "Pretrained", "Progress", "open_pretrained"]


def open_pretrained(path: Path) -> Pretrained:
    """Opens a folder of transformers, a GGUF file, or what `save_pretrained` or `save_orbax` wrote.

    Raises:
        InputError: nothing usable is there, mmjax does not have the family, or tensors are missing, unexpected or misshapen.
    """
    if is_orbax(path):
        return open_orbax(path)
    return open_whole(path) if is_whole(path) else open_published(path)
