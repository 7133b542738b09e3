"""What is read in parts, through a cache that grows, is what the whole text says at once."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.inference import sampling, streaming
from mmjax.inference.streaming import StreamingDecoder
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, DynamicScaling, LanguageModelConfig, Llama3Scaling
from tests.chat.tiny_models import VOCABULARY, draw, language_model

greedy = functools.partial(sampling.choose, temperature=0.0, top_p=1.0)
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 1300).astype(np.int32)
CONFIGS = {
    "grouped": {},
    "one key head": {"kv_heads": 1, "layers": 1},
    "tied": {"layers": 1, "tie_word_embeddings": True},
    "biases": {"layers": 1, "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "query and key norms": {"layers": 1, "query_key_norm": True},
    "sliding window": {"layers": 1, "sliding_window": 5},
    "experts": {"layers": 1, "experts": 3},
    "surrogate": {"layers": 4, "replaced_layers": ((1, 3),)},
    "llama 3": {"layers": 1, "rope_scaling": Llama3Scaling("llama3", 4.0, 1.0, 4.0, 16)},
}


def score(number: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Instead of a token, the score of one, as the bits of a float32."""
    return lambda logits, _: jax.lax.bitcast_convert_type(logits[number], jnp.int32)


def as_float(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))


def make(
    config: LanguageModelConfig, choose=greedy, *, vocabulary: int = VOCABULARY, seed: int = 0
) -> StreamingDecoder:
    return StreamingDecoder(config, weights(config), choose, vocabulary=vocabulary, seed=seed)


def weights(config: LanguageModelConfig) -> dict[str, jax.Array]:
    return dict(initialized(config))


@functools.cache
def initialized(config: LanguageModelConfig) -> dict[str, jax.Array]:
    return {path: jnp.asarray(value) for path, value in draw(config).items()}


@functools.cache
def whole(config: LanguageModelConfig, length: int) -> np.ndarray:
    """Scores [T, V] after every one of the first tokens, without a cache."""
    model_def = parameters.abstract(config)[0]
    return np.asarray(
        jax.jit(lambda params, tokens: model_def.merge(params)(tokens))(
            weights(config), TOKENS[None, :length]
        )[0]
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_the_whole_text(name: str):
    config = language_model(**CONFIGS[name])
    expected = whole(config, 50)[:, 7]
    one = make(config, score(7))
    for part in ((0, 9), (9, 10), (10, 11), (11, 43)):
        assert as_float(one.read(TOKENS[slice(*part)])) == pytest.approx(
            expected[part[1] - 1], rel=1e-4, abs=1e-5
        )
        assert one.length == part[1]


@functools.cache
def shared() -> StreamingDecoder:
    return make(language_model())


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_it_does_not_matter_how_a_text_is_cut(lengths: list[int]):
    one, start = shared(), 0
    one.reset()
    for length in lengths:
        chosen = one.read(TOKENS[start : start + length])
        start += length
        assert chosen == whole(language_model(), 1300)[start - 1].argmax()


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_what_is_forgotten_leaves_no_trace(length: int, data: st.DataObject):
    one = shared()
    one.reset()
    kept = data.draw(st.integers(0, length))
    one.read(
        TOKENS[500 : 500 + length]
        if not kept
        else np.concatenate([TOKENS[:kept], TOKENS[500 : 500 + length]])
    )
    one.forget(kept)
    assert one.read(TOKENS[kept : kept + 20]) == whole(language_model(), 1300)[kept + 19].argmax()


def test_long_texts_are_read_in_chunks_and_the_cache_grows():
    config, one = language_model(), shared()
    one.reset()
    assert one.read(TOKENS[:1200]) == whole(config, 1300)[1199].argmax()
    for place in range(1200, 1230):
        assert one.read(TOKENS[place : place + 1]) == whole(config, 1300)[place].argmax()


def test_a_rotation_that_depends_on_the_length_does_not_see_padding():
    config = language_model(layers=1, rope_scaling=DynamicScaling("dynamic", 2.0, 20))
    assert as_float(make(config, score(3)).read(TOKENS[:18])) == pytest.approx(
        whole(config, 18)[17, 3], rel=1e-4
    )


def test_few_programs_are_compiled():
    programs = []  # a program is traced once, and asks then how a token is chosen

    def choose(logits: jax.Array, key: jax.Array) -> jax.Array:
        programs.append(logits)
        return greedy(logits, key)

    one = make(language_model(), choose)
    for length in (3, 17, 32, 1, 1, 40, 64, 1):
        one.read(TOKENS[:length])
    assert len(programs) == 3  # 1, 32 and 64 tokens
    one.read(TOKENS[:480])
    one.read(TOKENS[:1])
    assert len(programs) == 5  # 512 tokens, and one behind them: the cache has doubled


def test_a_stop_is_noticed_between_the_chunks_of_a_long_text():
    one = shared()
    one.reset()
    answers = iter([False, True])
    one.read(TOKENS, should_stop=lambda: next(answers))
    assert one.length == 2 * streaming.MAX_CHUNK
    assert one.read(TOKENS[one.length : 1100]) == whole(language_model(), 1300)[1099].argmax()


def test_embeddings_take_the_place_of_tokens():
    config = language_model()
    table = initialized(config)["decoder/embedding"]
    one = shared()
    one.reset()
    where = np.zeros(40, bool)
    where[5:30] = True
    visual = jnp.where(where[:, None], table[TOKENS[:40]], jnp.nan)
    tokens = np.where(where, 0, TOKENS[:40])
    assert one.read(tokens, (visual, where)) == whole(config, 1300)[39].argmax()


def test_ids_without_a_meaning_are_never_chosen():
    config = language_model()
    some = whole(config, 1300)[:50].argmax(axis=1)
    few = int(some.max())
    shared().reset()
    assert shared().read(TOKENS[: int(some.argmax()) + 1]) == few
    one = make(config, vocabulary=few)
    assert (
        one.read(TOKENS[: int(some.argmax()) + 1])
        == whole(config, 1300)[int(some.argmax()), :few].argmax()
    )


def drawn(one: StreamingDecoder) -> list[int]:
    one.reset()
    tokens = [one.read(TOKENS[:10])]
    for _ in range(20):
        tokens.append(one.read(np.array(tokens[-1:], np.int32)))
    return tokens


def test_chance_follows_the_seed():
    choose = functools.partial(sampling.choose, temperature=3.0, top_p=1.0)
    one, same, other = (make(language_model(), choose, seed=seed) for seed in (5, 5, 6))
    assert drawn(one) == drawn(one) == drawn(same) != drawn(other)
    assert len(set(drawn(one))) > 5


def test_parameters_are_in_memory_once():
    config = language_model(tie_word_embeddings=True)
    params = weights(config)
    StreamingDecoder(config, params, greedy, vocabulary=VOCABULARY, seed=0)
    assert not params


def test_bfloat16_is_kept_in_the_cache():
    config = dataclasses.replace(language_model(), compute_dtype="bfloat16")
    assert isinstance(config.decoder, DecoderConfig)
    one = make(config, score(7))
    assert as_float(one.read(TOKENS[:30])) == pytest.approx(
        whole(language_model(), 1300)[29, 7], abs=0.2
    )
    assert one._layers[0][0].dtype == jnp.bfloat16
