"""The decoder against Llama of transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, Llama3Scaling, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.models.decoder import KVCache
from mmjax.training.metrics import cross_entropy

GROUPED = DecoderConfig(
    vocabulary=40, width=24, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=32
)
SETTINGS = {
    "grouped": GROUPED,
    "tied": dataclasses.replace(GROUPED, rope_theta=500_000.0, tie_word_embeddings=True),
    "scaled": dataclasses.replace(
        GROUPED, rope_scaling=Llama3Scaling("llama3", 8.0, 1.0, 4.0, 128)
    ),
}


def whole(decoder: DecoderConfig) -> VLMConfig:
    vision = ViTConfig(image_size=4, patch_size=4, width=4, layers=1, heads=1, mlp_width=4)
    return VLMConfig(vision, LinearConfig("linear", (1,)), decoder, compute_dtype="float32")


@pytest.fixture
def llama(reference):
    return reference("llama")


@pytest.fixture
def make_params(llama, translated, complete):
    """Parameters of a setting: all share their weights, and the tied one has no head."""

    def make(config):
        part = translated(llama, "weight", "decoder/")
        return complete(
            config,
            {path: value for path, value in part.items() if path in parameters.abstract(config)[1]},
        )

    return make


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, positions, segments):
    decoder = parameters.abstract(config)[0].merge(params).decoder
    return decoder.logits(
        decoder(decoder.embed_tokens(tokens), positions, IntervalMask.from_segments(segments))[0]
    )


@functools.partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def loss(params, config, row, targets):
    return cross_entropy(logits(config, params, *row), targets).mean_loss


@functools.partial(jax.jit, static_argnums=0)
def continued(config, params, tokens, positions, cache):
    """Logits of the next tokens of every row, and the cache with them."""
    decoder = parameters.abstract(config)[0].merge(params).decoder
    mask = IntervalMask(jnp.zeros_like(positions), positions + 1)
    hidden, cache = decoder(decoder.embed_tokens(tokens), positions, mask, cache)
    return decoder.logits(hidden), dataclasses.replace(cache, length=cache.length + tokens.shape[1])


def plain(tokens):
    """Tokens of one segment each, with their positions."""
    tokens = jnp.asarray(tokens, jnp.int32)
    return (
        tokens,
        jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
        jnp.ones_like(tokens),
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_logits(name, llama, make_params, close):
    config = whole(SETTINGS[name])
    close(logits(config, make_params(config), *plain(llama["tokens"])), llama[f"{name}/logits"])


def test_the_settings_differ(llama):
    """Else a setting that is not obeyed would pass."""
    for name in ("tied", "scaled"):
        assert np.abs(llama[f"{name}/logits"] - llama["grouped/logits"]).max() > 0.1


def test_loss_and_gradients(llama, make_params, translated, close, close_trees):
    config = whole(GROUPED)
    tokens, positions, segments = plain(llama["tokens"])
    targets = jnp.concatenate([tokens[:, 1:], jnp.full_like(tokens[:, :1], -1)], axis=1)

    value, gradient = loss(make_params(config), config, (tokens, positions, segments), targets)
    close(value, llama["grouped/loss"])
    close_trees(gradient, translated(llama, "gradient", "decoder/"))


def test_packed_rows_are_as_rows_of_their_own(llama, make_params, close):
    config = whole(GROUPED)
    tokens, positions, segments = plain(llama["tokens"])
    rows, length = tokens.shape
    numbers = segments * jnp.arange(1, rows + 1)[:, None]
    packed = logits(
        config,
        make_params(config),
        *(array.reshape(1, -1) for array in (tokens, positions, numbers)),
    )
    close(packed.reshape(rows, length, -1), llama["grouped/logits"])


def test_decoding_piece_by_piece_with_a_cache(llama, make_params, close):
    config = whole(SETTINGS["scaled"])
    tokens, positions, _ = plain(llama["tokens"])
    params, rows = make_params(config), len(tokens)
    cache = KVCache.empty(config.decoder, rows, 64, jnp.dtype("float32"))

    pieces = []
    for start, stop in ((0, 40), (40, 41), (41, 42), (42, 48)):
        piece, cache = continued(
            config, params, tokens[:, start:stop], positions[:, start:stop], cache
        )
        pieces.append(piece)
    close(np.concatenate(pieces, axis=1), llama["scaled/logits"])
