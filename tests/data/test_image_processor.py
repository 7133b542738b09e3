"""What a preprocessor_config.json asks for, and what is refused because it would give other pixels."""

import json
import os

import numpy as np
import pytest
from PIL import Image as Pillow

from mmjax.data.examples import SampleError
from mmjax.data.images import decode
from mmjax.data.images.processor import ImageProcessor, open_image_processor
from mmjax.errors import InputError

BICUBIC, BILINEAR = Pillow.Resampling.BICUBIC, Pillow.Resampling.BILINEAR
HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def read(folder, **content):
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return open_image_processor(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SiglipImageProcessor", ImageProcessor((224, 224), BICUBIC, None, HALF, HALF)),
        ("ViTImageProcessorFast", ImageProcessor((224, 224), BILINEAR, None, HALF, HALF)),
        ("ViTFeatureExtractor", ImageProcessor((224, 224), BILINEAR, None, HALF, HALF)),
    ],
)
def test_what_a_class_does_by_itself(tmp_path, name, expected):
    assert read(tmp_path, image_processor_type=name) == expected


def test_steps_that_are_skipped(tmp_path):
    off = {"do_resize": False, "do_center_crop": False, "do_normalize": False}
    processor = read(tmp_path, image_processor_type="CLIPImageProcessor", **off)
    assert (processor.size, processor.crop, processor.mean, processor.std) == (
        None,
        None,
        (0.0,) * 3,
        (1.0,) * 3,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    np.testing.assert_array_equal(processor.load(pixels), pixels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "without a name"),
        (
            {"image_processor_type": "Qwen2VLImageProcessor"},
            "Qwen2VLImageProcessor', which mmjax does not know",
        ),
        ({"do_rescale": False}, "not divided by 255"),
        ({"rescale_factor": 1 / 127.5}, "not divided by 255"),
        ({"rescale_factor": "much"}, "not divided by 255"),
        ({"rescale_factor": 10**400}, "not divided by 255"),
        ({"do_pad": True}, "do_pad"),
        ({"do_resize": "yes"}, "do_resize must be true or false, not 'yes'"),
        ({"size": {"shortest_edge": 224, "longest_edge": 448}}, "shortest edge"),
        ({"size": {"height": 0, "width": 4}}, "size must be a height"),
        ({"size": {"shortest_edge": 10**9}}, "size must be a height"),
        ({"crop_size": {"height": 4}}, "crop_size must have one of"),
        ({"crop_size": {"height": 4, "width": 1.5}}, "crop_size must be a height"),
        ({"size": []}, "CLIPImageProcessorPil refuses its settings"),
        ({"size": "224"}, "CLIPImageProcessorPil refuses its settings"),
        ({"self": 1}, "CLIPImageProcessorPil refuses its settings"),
        ({"resample": 17}, "resample must be a filter of Pillow"),
        ({"resample": "bicubic"}, "resample must be a filter of Pillow"),
        ({"resample": None}, "resample must be a filter of Pillow"),
        ({"size": None}, "size must be a height"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "which mmjax does not know"),
        ({"image_processor_type": "x" * 10**6 + "ImageProcessor"}, "which mmjax|x"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three numbers, not"),
        ({"image_mean": [0.5, 0.5, "a"]}, "image_mean must be three numbers, not"),
        ({"image_mean": [10**400, 0.5, 0.5]}, "image_mean must be three numbers, not"),
        ({"image_mean": True}, "image_mean must be three numbers, not"),
        ({"image_std": [float("nan"), 0.5, 0.5]}, "image_std must be three numbers, not"),
        ({"image_std": [0.5, 0.5, 0]}, "must be positive"),
    ],
)
def test_what_mmjax_does_not_do_is_refused(tmp_path, content, message):
    named = (
        content
        if not content or "image_processor_type" in content
        else {"image_processor_type": "CLIPImageProcessor", **content}
    )
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, **named)
    assert len(str(caught.value)) < 1000


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"no .*preprocessor_config\.json"):
        open_image_processor(tmp_path)
    for content in ("{", "[]", "\xff"):
        (tmp_path / "preprocessor_config.json").write_text(content, encoding="latin-1")
        with pytest.raises(InputError):
            open_image_processor(tmp_path)


def test_a_thin_image_that_would_become_huge_is_oversized(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 224 * 224 * 4)
    processor = read(tmp_path, image_processor_type="CLIPImageProcessor")
    with pytest.raises(
        SampleError, match="oversized image: 1 x 100 pixels would become 224 x 22400"
    ):
        processor.load(np.zeros((100, 1, 3), np.uint8))
    with pytest.raises(SampleError, match="oversized image"):
        decode.load_image(np.zeros((1, 100, 3), np.uint8), 224, resize="crop")


def test_what_is_no_regular_file_of_settings(tmp_path):
    os.mkfifo(tmp_path / "preprocessor_config.json")
    with pytest.raises(InputError, match="is not a file"):
        open_image_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with (tmp_path / "preprocessor_config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="that is no list of settings"):
        open_image_processor(tmp_path)


CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8}, "crop_size": 8}


def test_settings_within_processor_config_come_first(tmp_path):
    """Transformers 5 writes them there, and no preprocessor_config.json."""
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({"image_processor": CLIP | {"image_mean": [0.25] * 3}}))
    expected = ImageProcessor(8, BICUBIC, (8, 8), (0.25,) * 3, CLIP_STD)
    assert open_image_processor(tmp_path) == open_image_processor(file) == expected
    assert read(tmp_path, **CLIP, image_mean=HALF) == expected
    # Older ones hold settings of other things.
    file.write_text(json.dumps({"processor_class": "LlavaProcessor", "patch_size": 14}))
    assert read(tmp_path, **CLIP, image_mean=HALF).mean == HALF
    for value, message in ((3, "image_processor is not an object"), ({}, "without a name")):
        file.write_text(json.dumps({"image_processor": value}))
        with pytest.raises(InputError, match=message):
            open_image_processor(tmp_path)


@pytest.mark.parametrize(
    ("model", "crop", "mean"),
    [
        ({"model_type": "clip"}, (224, 224), CLIP_MEAN),
        ({"model_type": "siglip"}, None, HALF),
        ({"model_type": "clip", "image_processor_type": "ViTImageProcessor"}, None, HALF),
    ],
)
def test_settings_without_a_name_are_those_of_the_model(tmp_path, model, crop, mean):
    (tmp_path / "config.json").write_text(json.dumps(model))
    processor = read(tmp_path, do_resize=True)
    assert (processor.crop, processor.mean) == (crop, mean)
