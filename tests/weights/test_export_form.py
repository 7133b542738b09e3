"""What is written computes what was trained, whichever stacks the blocks lie in and whichever of them have low-rank updates."""

import dataclasses

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize(
    "targets",
    [
        (),
        ("decoder/translators/*",),
        ("vision/separate_last_layers/*",),
        ("decoder/kept_layers/0/*", "decoder/translators/*"),
    ],
)
def test_logits_stay(targets):
    lora = LoRAConfig(rank=2, targets=targets) if targets else LoRAConfig()
    model = dataclasses.replace(MODEL, lora=lora)
    params = parameters.initialize(model, jax.random.key(0))
    params |= {
        path: jnp.ones_like(value) for path, value in params.items() if path.endswith("lora_b")
    }
    place = np.arange(8, dtype=np.int32)[None]
    slot = np.where(place < 4, place, -1).astype(np.int32)
    images = np.random.default_rng(0).integers(0, 255, (1, 1, 16, 16, 3)).astype(np.uint8)
    ones = np.ones_like(place)
    batch = Batch(
        place, place, ones, np.zeros_like(place), place, images, np.ones((1, 1), bool), slot
    )
    expected = parameters.abstract(model)[0].merge(params)(batch)
    found = parameters.abstract(export_config(model))[0].merge(export_params(params, model))(batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)
