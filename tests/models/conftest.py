"""A model small enough to run in milliseconds, with every feature on."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.models.vlm import VLM
from mmjax.typing import Batch

CONFIG = VLMConfig(
    vision=ViTConfig(
        image_size=16,
        patch_size=4,
        width=16,
        layers=3,
        heads=2,
        mlp_width=24,
        weight_std=0.2,
        embedding_std=0.5,
    ),
    connector=ResamplerConfig(
        "resampler",
        (4, 2),
        (2, 4),
        (2, 3),
        width=16,
        head_dim=8,
        mlp_width=24,
        weight_std=0.2,
        query_std=0.5,
    ),
    decoder=DecoderConfig(
        vocabulary=20,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        mlp_width=24,
        weight_std=0.2,
        embedding_std=0.5,
    ),
    compute_dtype="float32",
)
VISUAL = CONFIG.visual_tokens


@pytest.fixture(scope="session")
def config() -> VLMConfig:
    return CONFIG


@pytest.fixture(scope="session")
def make_vlm() -> Callable[..., VLM]:
    """A model with changed fields; parameters depend on the seed and the shapes only. The same model is made once and shared."""

    @functools.cache
    def make(seed: int = 0, **changes) -> VLM:
        changed = dataclasses.replace(CONFIG, **changes)
        return parameters.abstract(changed)[0].merge(
            parameters.initialize(changed, jax.random.key(seed))
        )

    return make


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Batch]:
    """A row of one image and some questions about it; without questions, and `image=False`, text alone."""

    def make(
        questions: list[list[int]], *, length: int = 24, image: bool = True, seed: int = 0
    ) -> Batch:
        tokens, targets, segments, prefixes, positions, slot = (
            np.zeros((1, length), np.int32) for _ in range(6)
        )
        targets -= 1
        slot -= 1
        start = VISUAL if image else 0
        segments[0, :start], positions[0, :start], slot[0, :start] = (
            1,
            np.arange(start),
            np.arange(start),
        )
        for number, question in enumerate(questions, 1 + image):
            where = slice(start, start + len(question))
            tokens[0, where], segments[0, where], prefixes[0, where] = (
                question,
                number,
                int(image),
            )
            positions[0, where] = (VISUAL if image else 0) + np.arange(len(question))
            targets[0, start + len(question) - 1] = question[0]
            start += len(question)
        images = np.random.default_rng(seed).integers(0, 256, (1, 1, 16, 16, 3), np.uint8)
        batch = Batch(
            tokens, targets, segments, prefixes, positions, images, np.full((1, 1), image), slot
        )
        return jax.tree.map(jnp.asarray, batch)

    return make
