"""Image processors of transformers, in small: pixels of several shapes after resizing and cropping, and after normalisation."""

import json

import numpy as np
from recording import save
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

SEED = 7
SHAPES = ((24, 24), (40, 57), (70, 33), (9, 30), (64, 64), (31, 17), (12, 95))

SETTINGS = {
    "clip": (
        CLIPImageProcessor,
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    ),
    "siglip": (SiglipImageProcessor, {"size": {"height": 22, "width": 22}}),
    "siglip_oblong": (
        SiglipImageProcessor,
        {
            "size": {"height": 14, "width": 29},
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
        },
    ),
    # DINOv2's: the crop is smaller than the shorter side.
    "bit": (
        BitImageProcessor,
        {"size": {"shortest_edge": 27}, "crop_size": {"height": 23, "width": 23}, "resample": 3},
    ),
    # The crop is larger, so that there is black around the image.
    "padded": (
        CLIPImageProcessor,
        {"size": {"shortest_edge": 15}, "crop_size": {"height": 20, "width": 25}},
    ),
    "vit": (ViTImageProcessor, {"size": {"height": 19, "width": 19}}),
    "vit_lanczos": (
        ViTImageProcessor,
        {"size": {"height": 19, "width": 26}, "resample": 1, "do_normalize": False},
    ),
}


def image(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Coarse blocks and some lines: antialiasing and overshoot both show, and it packs well."""
    blocks = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width].copy()
    pixels[::5] //= 2
    pixels[:, ::7] = 255 - pixels[:, ::7]
    return pixels


generator = np.random.default_rng(SEED)
arrays = {f"image:{number}": image(generator, *shape) for number, shape in enumerate(SHAPES)}
for name, (kind, options) in SETTINGS.items():
    processor = kind(**options)
    config = processor.to_dict() | {"image_processor_type": kind.__name__.removesuffix("Pil")}
    arrays[f"config:{name}"] = np.frombuffer(json.dumps(config, sort_keys=True).encode(), np.uint8)
    for number in range(len(SHAPES)):
        pixels = arrays[f"image:{number}"]
        plain = processor(pixels, return_tensors="np", do_rescale=False, do_normalize=False)[
            "pixel_values"
        ][0]
        arrays[f"pixels:{name}:{number}"] = plain.astype(np.uint8).transpose(1, 2, 0)
    arrays[f"normalised:{name}"] = (
        processor(arrays["image:1"], return_tensors="np")["pixel_values"][0]
        .transpose(1, 2, 0)
        .astype(np.float32)
    )
save(__file__, SEED, arrays)
