"""A whole Chain-of-Sight model, from bytes of images to the gradient of every parameter, against CLIP and Llama of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.training.metrics import cross_entropy
from mmjax.typing import Batch

CONFIG = VLMConfig(
    vision=ViTConfig(image_size=16, patch_size=4, width=16, layers=3, heads=2, mlp_width=24),
    connector=ResamplerConfig(
        "resampler", (4, 2), (2, 4), (2, 3), width=16, head_dim=8, mlp_width=24
    ),
    decoder=DecoderConfig(
        vocabulary=20, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=24
    ),
    compute_dtype="float32",
)
VISUAL = CONFIG.visual_tokens


@jax.jit
def logits(params, batch):
    return parameters.abstract(CONFIG)[0].merge(params)(batch)


@jax.jit
@jax.value_and_grad
def loss(params, batch):
    return cross_entropy(
        *parameters.abstract(CONFIG)[0].merge(params).supervised_logits(batch)
    ).mean_loss


@pytest.fixture
def vlm(reference):
    return reference("vlm")


@pytest.fixture
def batch(vlm):
    """Each row an image, then its text. The first word is predicted at the last visual token."""
    rows, text = vlm["tokens"].shape
    everywhere = np.ones((rows, VISUAL + text), np.int32)
    slots = np.where(np.arange(VISUAL + text) < VISUAL, np.arange(VISUAL + text), -1)
    targets = np.full_like(everywhere, -1)
    targets[:, VISUAL - 1 : -1] = np.where(vlm["labels"] == -100, -1, vlm["labels"])
    batch = Batch(
        tokens=np.concatenate([np.zeros((rows, VISUAL)), vlm["tokens"]], axis=1).astype(np.int32),
        targets=targets,
        segment_ids=everywhere,
        prefix_segment_ids=0 * everywhere,
        positions=everywhere.cumsum(axis=1, dtype=np.int32) - 1,
        images=vlm["images"][:, None],
        image_mask=np.ones((rows, 1), bool),
        visual_embedding_index=(slots * everywhere).astype(np.int32),
    )
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture
def params(vlm, translated, complete):
    params = translated(vlm, "weight")
    assert params.keys() == parameters.abstract(CONFIG)[1].keys()
    return complete(CONFIG, params)


def test_logits(vlm, batch, params, close):
    close(logits(params, batch), vlm["logits"])


def test_loss_and_gradients(vlm, batch, params, translated, close, close_trees):
    value, gradient = loss(params, batch)
    close(value, vlm["loss"])
    theirs = translated(vlm, "gradient")
    assert gradient.keys() == theirs.keys()
    close_trees(gradient, theirs)
