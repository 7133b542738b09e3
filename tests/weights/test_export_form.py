"""What is written computes what was trained, whichever stacks the blocks lie in and whichever of them have low-rank updates."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LoRAConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.typing import Batch
from mmjax.weights.export_form import export_config, export_params

MODEL = VLMConfig(
    ViTConfig(
        image_size=16,
        patch_size=8,
        width=8,
        layers=3,
        heads=2,
        mlp_width=8,
        separate_last_layers=1,
        weight_std=0.3,
    ),
    LinearConfig("linear", (3,), weight_std=0.3),
    DecoderConfig(
        vocabulary=16,
        width=8,
        layers=6,
        heads=2,
        kv_heads=1,
        head_dim=4,
        mlp_width=8,
        replaced_layers=((2, 5),),
        weight_std=0.3,
    ),
    compute_dtype="float32",
)


def logits(model, params, batch):
    """In one program: without jit, each operation is compiled alone."""
    model_def = parameters.abstract(model)[0]
    return jax.jit(lambda params, batch: model_def.merge(params)(batch))(params, batch)


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("decoder/translators/*",), marks=pytest.mark.slow),
        pytest.param(("vision/separate_last_layers/*",), marks=pytest.mark.slow),
        ("decoder/kept_layers/0/*", "decoder/translators/*"),
    ],
)
def test_logits_stay(targets):
    lora = LoRAConfig(rank=2, targets=targets) if targets else LoRAConfig()
    model = dataclasses.replace(MODEL, lora=lora)
    random = np.random.default_rng(0)
    params = {
        path: 0.3 * random.standard_normal(shape.shape, np.float32)
        for path, shape in parameters.abstract(model)[1].items()
    }
    place = np.arange(8, dtype=np.int32)[None]
    slot = np.where(place < 4, place, -1).astype(np.int32)
    images = np.random.default_rng(0).integers(0, 255, (1, 1, 16, 16, 3)).astype(np.uint8)
    ones = np.ones_like(place)
    batch = Batch(
        place, place, ones, np.zeros_like(place), place, images, np.ones((1, 1), bool), slot
    )
    expected = logits(model, params, batch)
    found = logits(export_config(model), export_params(params, model), batch)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)
