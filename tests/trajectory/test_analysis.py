"""The record of an analysis."""

import pytest

from mmjax.models import presets
from mmjax.models.config import LanguageModelConfig
from mmjax.trajectory.analysis import surrogate_size


@pytest.mark.parametrize(
    ("config", "cut", "size"),
    [
        (presets.llama32_3b(), 16, 2.206),
        (presets.llama31_8b(), 17, 5.195),
        (presets.llama31_70b(), 40, 38.039),
    ],
)
def test_surrogates_have_the_sizes_of_the_published_ones(config, cut, size):
    """arXiv:2505.22664: 18, 19 and 42 layers, in the place of 28, 32 and 80."""
    parameters, share = surrogate_size(LanguageModelConfig(config), cut)
    assert parameters / 1e9 == pytest.approx(size, abs=6e-4)
    whole = {28: 3.213, 32: 8.030, 80: 70.554}[config.layers]
    assert share == pytest.approx(size / whole, abs=3e-4)


def test_a_range_of_one_layer_saves_nothing():
    assert surrogate_size(LanguageModelConfig(presets.llama31_8b()), 30)[1] == 1
