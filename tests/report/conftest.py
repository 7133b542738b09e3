"""A workdir that no run wrote: numbers, images and answers are made up, in the form of the real files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw

from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.recipe.recipe import DataConfig, OptimizerConfig, Recipe, Stage
from mmjax.recipe.serialization import to_json
from mmjax.transitions.manifest import Entry, Manifest

COLORS = {"red": "#d22", "teal": "#088", "blue": "#22d", "brown": "#842"} | {
    "gray": "#888",
    "yellow": "#dd2",
    "black": "#111",
    "green": "#282",
}
SHAPES = ("circle", "rectangle", "triangle")


def make_model(
    image_size: int,
    windows: tuple[int, ...],
    queries: tuple[int, ...],
    parents: tuple[int, ...] = (),
) -> VLMConfig:
    """The shape of a small model."""
    return VLMConfig(
        ViTConfig(
            image_size, 4, 128, 3, 4, 512, norm="rms", class_token=False, embedding_norm=False
        ),
        ResamplerConfig(
            "resampler", windows, queries, (3,), 128, 32, 512, norm="rms", parents=parents
        ),
        DecoderConfig(312, 128, 3, 4, 4, 32, 320),
        compute_dtype="float32",
    )


def make_recipe() -> Recipe:
    """Two stages, 20 then 84 visual tokens."""

    def data(tasks: tuple[str, ...], length: int) -> DataConfig:
        return DataConfig(
            {"easy_vqa": EasyVqaSource("easy_vqa", tasks)}, length, flip=True, holdout=200
        )

    first, second = (
        make_model(32, (8, 2), (4, 16)),
        make_model(64, (16, 8, 2), (4, 16, 64), (0, 0, 1)),
    )
    stages = {
        "pretrain": Stage(
            "pretrain", first, data(("caption", "question"), 48), OptimizerConfig(1e-3), 1500, 16
        ),
        "finetune": Stage(
            "finetune",
            second,
            data(("question",), 80),
            OptimizerConfig(7e-4),
            500,
            16,
            ("inflate", "resize_positions"),
        ),
    }
    return Recipe(
        "cos", "", stages, notes={"data": "substituted: easy-vqa, which any computer can train on"}
    )


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A finished run."""
    folder = tmp_path / "cos"
    (folder / "manifests").mkdir(parents=True)
    (folder / "previews").mkdir()
    write(folder / "config.json", to_json(make_recipe()))
    write(folder / "summary.json", make_summary())
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in make_metrics())
    )
    write_predictions(folder)
    for stage, manifest in make_manifests().items():
        write(folder / "manifests" / f"{stage}.json", manifest.to_json())
        (folder / "previews" / f"{stage}.txt").write_text(
            "segment 1, positions 0-19 | <image 0: 20 visual tokens>\n[circle][<eos>]"
        )
        Pillow.new("RGB", (1100, 120), "#eee").save(folder / "previews" / f"{stage}.png")
    write_attention(folder)
    return folder


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def make_summary() -> dict:
    causes = {
        "compile": 8.2,
        "input": 0.6,
        "step": 166.0,
        "evaluation": 2.1,
        "save": 1.2,
        "other": 2.4,
    }
    more = {
        "compile": 9.9,
        "input": 0.3,
        "step": 203.0,
        "evaluation": 3.0,
        "save": 1.0,
        "other": 1.0,
    }
    result = {
        "score": 0.9907,
        "by_type": {"color": 1.0, "shape": 0.9714, "yes_no": 0.9924},
        "n": 9673,
        "n_by_type": {"color": 1280, "shape": 1257, "yes_no": 7136},
        "baselines": {"question_only": 0.67, "untrained": 0.0007},
        "baselines_by_type": {
            "question_only": {"color": 0.12, "shape": 0.348, "yes_no": 0.825},
            "untrained": {"color": 0.0, "shape": 0.0, "yes_no": 0.0009},
        },
    }
    return {
        "schema_version": 1,
        "config_digest": "3f9c" * 16,
        "seed": 0,
        "stages": [
            stage_entry("pretrain", 1500, 24000, 1632000, 180.5, 2.9e14, 20, causes),
            stage_entry("finetune", 500, 8000, 1312000, 218.2, 3.1e14, 84, more),
        ],
        "eval": {"easy_vqa": result},
        "versions": {"mmjax": "0.1.0", "python": "3.12.8", "jax": "0.11.2", "flax": "0.12.8"},
        "hardware": {
            "platform": "cpu",
            "device": "cpu",
            "devices": 1,
            "processes": 1,
            "cpus": 2,
            "machine": "x86_64",
        },
    }


def stage_entry(
    name: str,
    steps: int,
    samples: int,
    tokens: int,
    seconds: float,
    flops: float,
    visual: int,
    causes: dict,
) -> dict:
    numbers = {
        "steps": steps,
        "samples": samples,
        "tokens": tokens,
        "seconds": seconds,
        "flops": flops,
        "visual_tokens_per_image": visual,
    }
    return {"name": name, **numbers, "seconds_by_cause": causes}


def make_metrics() -> list[dict]:
    rng = np.random.default_rng(0)
    lines: list[dict] = []
    for stage, steps, start, end in (("pretrain", 1500, 3.4, 0.16), ("finetune", 500, 0.17, 0.012)):
        for step in range(50, steps + 1, 50):
            loss = end + (start - end) * math.exp(-5 * step / steps)
            lines.append(
                {
                    "stage": stage,
                    "step": step,
                    "time": step * 0.12,
                    "loss": loss * float(rng.uniform(0.93, 1.07)),
                }
            )
            if step % 250 == 0:
                lines.append(
                    {"stage": stage, "step": step, "time": step * 0.12, "holdout/loss": loss * 1.12}
                )
    return lines


def write_predictions(folder: Path) -> None:
    images = folder.parent / "images"
    images.mkdir()
    lines = []
    for index in range(60):
        color, shape = list(COLORS)[index % 8], SHAPES[index % 3]
        path = images / f"{index}.png"
        draw_shape(color, shape, index).save(path)
        questions = (
            ("what is the color of the shape?", color, "color"),
            (f"what is the {color} shape?", shape, "shape"),
            (f"is there not a {color} shape in the image?", "no", "yes_no"),
        )
        for number, (question, reference, kind) in enumerate(questions):
            prediction = "triangle" if kind == "shape" and index % 7 == 3 else reference
            record = {
                "task": "easy_vqa",
                "id": f"easy_vqa/test/{index}",
                "image": str(path),
                "question": question,
                "type": kind,
            }
            lines.append(
                json.dumps(
                    record | {"reference": reference, "prediction": prediction, "number": number}
                )
            )
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")


def draw_shape(color: str, shape: str, seed: int) -> Pillow.Image:
    rng = np.random.default_rng(seed)
    image = Pillow.new("RGB", (64, 64), tuple(int(value) for value in rng.integers(215, 250, 3)))
    left, top = (int(value) for value in rng.integers(4, 30, 2))
    ink, box = ImageDraw.Draw(image), (left, top, left + 28, top + 28)
    if shape == "circle":
        ink.ellipse(box, COLORS[color])
    elif shape == "rectangle":
        ink.rectangle(box, COLORS[color])
    else:
        ink.polygon([(left, top + 28), (left + 14, top), (left + 28, top + 28)], COLORS[color])
    return image


def make_manifests() -> dict[str, Manifest]:
    fresh = [
        Entry("vision/patch/kernel", None, "fresh", (48, 128), "float32"),
        Entry("connector/scales/0/queries", None, "fresh", (4, 128), "float32"),
        Entry("decoder/embedding", None, "fresh", (312, 128), "float32"),
    ]
    grown = [
        Entry("vision/patch/kernel", "vision/patch/kernel", "copied", (48, 128), "float32"),
        Entry(
            "vision/position",
            "vision/position",
            "resized",
            (256, 128),
            "float32",
            "bicubic, 8 x 8 to 16 x 16",
        ),
        Entry(
            "connector/scales/1/queries",
            "connector/scales/0/queries",
            "tiled",
            (16, 128),
            "float32",
            "each of 1 window to 2 x 2",
        ),
        Entry(
            "connector/scales/2/queries",
            "connector/scales/1/queries",
            "tiled",
            (64, 128),
            "float32",
            "each of 4 windows to 2 x 2",
        ),
        Entry("decoder/embedding", "decoder/embedding", "copied", (312, 128), "float32"),
    ]
    return {
        "pretrain": Manifest(tuple(fresh), "pretrain"),
        "finetune": Manifest(tuple(grown), "finetune", ("inflate", "resize_positions")),
    }


def write_attention(folder: Path) -> None:
    pixels = np.asarray(draw_shape("teal", "circle", 3))
    rows, columns = np.mgrid[:16, :16]
    arrays: dict[str, np.ndarray] = {
        "image": pixels,
        "windows": np.array([16, 8, 2]),
        "name": np.array("easy_vqa/test/3"),
    }
    for index, queries in enumerate((4, 4, 1)):
        window = (16, 8, 2)[index]
        side = 16 // window
        maps = np.stack(
            [
                np.exp(-((rows - 6 - query) ** 2 + (columns - 7) ** 2) / (40 + 9 * query))
                for query in range(queries)
            ]
        )
        tiles = maps.reshape(queries, side, window, side, window)
        arrays[f"scale_{index}"] = (
            (tiles / tiles.sum(axis=(2, 4), keepdims=True))
            .reshape(1, queries, 16, 16)
            .astype(np.float32)
        )
    np.savez(folder / "attention.npz", **arrays)
