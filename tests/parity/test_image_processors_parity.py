"""Image processors against those of transformers: the same pixels, before and after normalisation."""

import json

import numpy as np
import pytest

from mmjax.data.images.decode import load_image
from mmjax.data.images.processor import NAME, open_image_processor

SETTINGS = ("clip", "siglip", "siglip_oblong", "bit", "padded", "vit", "vit_lanczos")


@pytest.fixture
def processors(reference, tmp_path):
    """(the reference, a reader of its settings)"""
    recorded = reference("image_processors")

    def read(name):
        (tmp_path / NAME).write_bytes(recorded[f"config:{name}"].tobytes())
        return open_image_processor(tmp_path)

    return recorded, read


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels(processors, name):
    recorded, read = processors
    processor = read(name)
    numbers = [key.rpartition(":")[2] for key in recorded if key.startswith(f"pixels:{name}:")]
    assert len(numbers) == 7
    for number in numbers:
        np.testing.assert_array_equal(
            processor.load(recorded[f"image:{number}"]), recorded[f"pixels:{name}:{number}"]
        )


@pytest.mark.parametrize("name", SETTINGS)
def test_normalisation(processors, name, close):
    recorded, read = processors
    processor = read(name)
    pixels = processor.load(recorded["image:1"]).astype(np.float32) / 255
    scaled = (pixels - np.array(processor.mean, np.float32)) / np.array(processor.std, np.float32)
    # Where nothing is normalised, transformers gives pixels of [0, 1] too.
    assert json.loads(recorded[f"config:{name}"].tobytes())["do_normalize"] == (
        processor.std != (1.0, 1.0, 1.0)
    )
    close(scaled, recorded[f"normalised:{name}"])


def test_the_crop_of_training_is_that_of_clip(processors):
    recorded, _ = processors
    for number in range(7):
        pixels = load_image(recorded[f"image:{number}"], 24, resize="crop")
        np.testing.assert_array_equal(pixels, recorded[f"pixels:clip:{number}"])
