"""What stands beside a whole model that was written as one folder: what stands beside its parts, and a tokenizer that knows images."""

import json
import shutil
from pathlib import Path

import tokenizers

from mmjax.weights.families.base import CONFIG, IMAGES, PROCESSOR, dumps
from mmjax.weights.vlm_checkpoint import DECODER, VISION, WHOLE

_IMAGE = "<image>"
_TOKENIZER = "tokenizer.json"


def complete_whole(folder: Path) -> None:
    """Completes the one folder of a model that `save_params` has written, if it has written it, from those of its parts.

    Args:
        folder: of the model, with all that stands beside its parts.
    """
    whole = folder / WHOLE
    if not whole.is_dir():
        return
    for path in (folder / DECODER).iterdir():
        if path.is_file() and path.name != CONFIG and not path.name.startswith("model"):
            shutil.copyfile(path, whole / path.name)
    for path in (folder / VISION / IMAGES, folder / PROCESSOR):
        if path.is_file():
            shutil.copyfile(path, whole / path.name)
    if (whole / _TOKENIZER).is_file():
        token = json.loads((whole / CONFIG).read_text(encoding="utf-8"))["image_token_index"]
        name = _name_image(whole / _TOKENIZER, token)
        if name is not None and not (folder / PROCESSOR).is_file():
            settings = json.loads((whole / PROCESSOR).read_text(encoding="utf-8"))
            text = dumps(settings | {"image_token": name})
            (whole / PROCESSOR).write_text(text, encoding="utf-8")


def _name_image(path: Path, token: int) -> str | None:
    """What a tokenizer calls the id that stands for images; one behind its vocabulary gets a name. None: it is no published tokenizer, or
    has no such id."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # the package raises no narrower type
        return None
    found = tokenizer.id_to_token(token)
    if found is None:
        tokenizer.add_special_tokens([_IMAGE])
        if tokenizer.token_to_id(_IMAGE) != token:
            return None
        tokenizer.save(str(path))
    return found or _IMAGE
