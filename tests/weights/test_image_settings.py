"""The mean and deviation by which an encoder normalises pixels: where a folder says them, and what stands for what it omits."""

import json

import pytest

from mmjax.errors import InputError
from mmjax.weights.load import open_pretrained
from tests.weights.models import SIGLIP, saved

HALF, CLIP_MEAN = (0.5,) * 3, (0.48145466, 0.4578275, 0.40821073)
CLIP = {"image_processor_type": "CLIPImageProcessor"}


@pytest.fixture
def mean_and_std(tmp_path):
    """Those of a SigLIP, whose own are not a half each, in a folder with these files of settings."""
    folder = saved("siglip", tmp_path / "siglip")
    (folder / "preprocessor_config.json").unlink()

    def opened(**files: dict):
        for name, content in files.items():
            (folder / f"{name}_config.json").write_text(json.dumps(content))
        with open_pretrained(folder) as pretrained:
            return pretrained.config.vision.image_mean, pretrained.config.vision.image_std

    return opened


def test_without_settings_they_are_those_of_the_family(mean_and_std):
    assert SIGLIP.image_mean == CLIP_MEAN
    assert mean_and_std() == (HALF, HALF)


def test_where_transformers_5_writes_them(mean_and_std):
    own = {"image_processor": CLIP | {"image_mean": [0.1] * 3, "image_std": [0.2] * 3}}
    assert mean_and_std(processor=own) == ((0.1,) * 3, (0.2,) * 3)
    assert mean_and_std(preprocessor=CLIP | {"image_mean": [0.3] * 3})[0] == (0.1,) * 3
    assert mean_and_std(processor={"patch_size": 14})[0] == (0.3,) * 3


def test_what_is_omitted_is_that_of_the_class_that_is_named(mean_and_std):
    assert mean_and_std(preprocessor=CLIP)[0] == CLIP_MEAN
    assert mean_and_std(preprocessor={"image_processor_type": "BitImageProcessor"})[0] == CLIP_MEAN
    assert mean_and_std(preprocessor={"feature_extractor_type": "ViTFeatureExtractor"})[0] == HALF
    assert mean_and_std(preprocessor={"image_processor_type": "UnknownImageProcessor"})[0] == HALF


def test_one_number_for_all_channels(mean_and_std):
    assert mean_and_std(preprocessor=CLIP | {"image_mean": 0.25})[0] == (0.25,) * 3


def test_pixels_that_are_not_normalised(mean_and_std):
    assert mean_and_std(preprocessor=CLIP | {"do_normalize": False}) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "settings", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}], ids=str
)
def test_pixels_that_are_scaled_otherwise_are_refused(mean_and_std, settings):
    with pytest.raises(
        InputError, match=r"preprocessor_config.json: pixels are not divided by 255"
    ):
        mean_and_std(preprocessor=CLIP | settings)
