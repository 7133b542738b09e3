"""A config file of tests: one small stage on squares with a colored stripe. `write_data` makes them; `train` is a process on them."""

import json
import os
import pathlib
import subprocess
import sys

from ml_collections import ConfigDict
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = "stages.squares.data.sources.squares"
COLORS = ("red", "green", "blue", "white", "black", "pink")
IMAGES, HELD_OUT, STEPS = 8, 2, 8


def get_config() -> ConfigDict:
    """Rows of one image, steps of one row; saved and logged every second step. Where the data are, the command line says."""
    tiny = {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}
    config = ConfigDict()
    config.model = {
        "vision": {"image_size": 8, "patch_size": 4, **tiny},
        "connector": {"kind": "linear", "feature_layers": (1,)},
        "decoder": {"vocabulary": None, "kv_heads": 1, "head_dim": 4, **tiny},
        "compute_dtype": "float32",
    }
    source = {"kind": "jsonl", "path": "", "image_dir": ""}
    data = {"sources": {"squares": source}, "text_length": 12, "holdout": HELD_OUT, "flip": True}
    config.stages = {
        "squares": {
            "data": data,
            "optimizer": {"learning_rate": 1e-2},
            "steps": STEPS,
            "batch_size": 1,
        }
    }
    config.checkpoint = {"every": 2}
    config.logging = {"every": 2, "trackers": ("jsonl",), "hang_timeout": 0.0}
    return config


def write_data(folder: pathlib.Path) -> pathlib.Path:
    """Images and the captions that name their colors."""
    colors = [COLORS[number % len(COLORS)] for number in range(IMAGES)]
    for number, color in enumerate(colors):
        image = Image.new("RGB", (8, 8), "gray")
        image.paste(color, (0, 0, 3, 8))  # at one side: mirrored, it is another image
        image.save(folder / f"{number}.png")
    write_records(
        folder,
        [
            {"image": f"{number}.png", "text": f"a {color} square"}
            for number, color in enumerate(colors)
        ],
    )
    return folder


def write_records(folder: pathlib.Path, records: list[dict]) -> None:
    """The data file."""
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)))


def settings(data: pathlib.Path) -> dict[str, str]:
    """What a command line says of the data."""
    return {f"{SOURCE}.path": str(data / "data.jsonl"), f"{SOURCE}.image_dir": str(data)}


def train(
    data: pathlib.Path, workdir: pathlib.Path, *, config: str = __file__, **changes: str
) -> subprocess.Popen:
    """`python -m mmjax.main` in a process of its own, with other settings of the stage if wanted (two underscores for a dot)."""
    given = settings(data) | {
        f"stages.squares.{name.replace('__', '.')}": value for name, value in changes.items()
    }
    flags = [
        f"--config={config}",
        *(f"--config.{name}={value}" for name, value in given.items()),
        f"--workdir={workdir}",
    ]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "mmjax.main", *flags],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Every file with the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
