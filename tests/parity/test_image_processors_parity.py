"""Image processors against those of transformers: the same pixels, before and after normalisation."""

import json

import numpy as np
import pytest

from mmjax.base.huggingface import IMAGES, transformers
from mmjax.data.images.decode import load_image
from mmjax.data.images.processor import open_image_processor
from mmjax.errors import InputError

SETTINGS = ("clip", "siglip", "siglip_oblong", "bit", "padded", "vit", "vit_lanczos")


@pytest.fixture
def processors(reference, tmp_path):
    """(the reference, a reader of its settings)"""
    recorded = reference("image_processors")

    def read(name):
        (tmp_path / IMAGES).write_bytes(recorded[f"config:{name}"].tobytes())
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


def assert_equal_pixels(folder, *images):
    """Before and after normalisation, of mmjax and of the installed transformers."""
    processor = open_image_processor(folder)
    theirs = transformers().AutoImageProcessor.from_pretrained(
        folder, backend="pil", local_files_only=True, trust_remote_code=False
    )
    for image in images:
        plain = theirs(image, return_tensors="np", do_rescale=False, do_normalize=False)
        pixels = processor.load(image)
        np.testing.assert_array_equal(pixels, plain["pixel_values"][0].transpose(1, 2, 0))
        scaled = (pixels / 255 - np.array(processor.mean)) / np.array(processor.std)
        expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(scaled, expected, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_of_the_installed_transformers(name, recorded, tmp_path):
    found = recorded("image_processors")
    (tmp_path / IMAGES).write_bytes(found[f"config:{name}"].tobytes())
    assert_equal_pixels(tmp_path, *(found[f"image:{number}"] for number in range(7)))


def test_every_class_gives_the_same_pixels_or_is_refused(tmp_path, recorded):
    """With its own defaults, where pixels are divided by 255 only."""
    image = recorded("image_processors")["image:1"]
    read = set()
    for name in dir(transformers()):
        if not name.endswith("ImageProcessorPil"):
            continue
        stem = name.removesuffix("ImageProcessorPil")
        settings = {"image_processor_type": f"{stem}ImageProcessor", "rescale_factor": 1 / 255}
        (tmp_path / IMAGES).write_text(json.dumps(settings))
        try:
            open_image_processor(tmp_path)
        except InputError:
            continue
        assert_equal_pixels(tmp_path, image)
        read.add(stem)
    assert read >= {"Bit", "Blip", "CLIP", "DeiT", "Siglip", "ViT"}
    assert not read & {"ConvNext", "Donut", "Idefics3", "LlavaNext", "Qwen2VL"}


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "SiglipImageProcessor", "size": 30},
        {"image_processor_type": "ViTImageProcessor", "size": 30},
        {"image_processor_type": "CLIPImageProcessor", "size": [20, 30], "do_center_crop": False},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 25},
        {"image_processor_type": "CLIPImageProcessor", "use_square_size": True},
        {
            "image_processor_type": "CLIPImageProcessorFast",
            "do_center_crop": None,
            "crop_size": None,
        },
        {"image_processor_type": "ViTImageProcessor", "size": 30, "default_to_square": False},
    ],
)
def test_settings_of_other_forms(settings, recorded, tmp_path):
    (tmp_path / IMAGES).write_text(json.dumps(settings))
    assert_equal_pixels(tmp_path, recorded("image_processors")["image:1"])
