"""Surrogates: which blocks they have, that they compute what the target computes as far as they go, and the way back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import transitions
from mmjax.errors import InputError
from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.models.decoder import KVCache
from mmjax.transitions.surrogate import cut, in_one_stack, join

KEY = jax.random.key(0)


def decoder(layers: int, *replaced: tuple[int, int], translators: int = 1) -> DecoderConfig:
    return DecoderConfig(
        vocabulary=8,
        width=8,
        layers=layers,
        heads=2,
        kv_heads=1,
        head_dim=4,
        mlp_width=8,
        replaced_layers=replaced,
        translators=translators,
        weight_std=0.3,
        embedding_std=1.0,
    )


# Facts of the official code (arXiv:2505.22664): which blocks the surrogate of each target has; "T" marks translators.
@pytest.mark.parametrize(
    ("layers", "replaced", "blocks", "trained"),
    [
        (28, ((16, 27),), (*range(17), 27), (16,)),
        (32, ((17, 31),), (*range(18), 31), (17,)),
        (80, ((40, 79),), (*range(41), 79), (40,)),
        (36, ((22, 35),), (*range(23), 35), (22,)),
        (12, ((3, 6), (8, 11)), (0, 1, 2, 3, 6, 7, 8, 11), (3, 6)),
    ],
)
def test_blocks_of_published_surrogates(layers, replaced, blocks, trained):
    config = decoder(layers, *replaced)
    assert config.blocks == blocks
    assert config.depth == len(blocks)
    positions = [
        i
        for layer_range in config.layer_ranges
        for i in [layer_range.path.startswith("translators/")] * layer_range.size
    ]
    assert tuple(i for i, is_translator in enumerate(positions) if is_translator) == trained


def test_several_translators_begin_as_blocks_on_end():
    config = decoder(12, (3, 7), (8, 11), translators=2)
    assert config.blocks == (0, 1, 2, 3, 4, 7, 8, 9, 11)
    assert [
        layer_range.path for layer_range in config.layer_ranges if "translators" in layer_range.path
    ] == ["translators/0/layers", "translators/1/layers"]


def test_a_range_at_either_end_leaves_no_empty_stack():
    assert [layer_range.path for layer_range in decoder(6, (0, 2)).layer_ranges] == [
        "translators/0/layers",
        "kept_layers/0/layers",
    ]
    assert [layer_range.path for layer_range in decoder(6, (4, 6)).layer_ranges] == [
        "kept_layers/0/layers",
        "translators/0/layers",
    ]


@pytest.fixture
def models(make_model):
    def make(*replaced: tuple[int, int], layers: int = 6):
        return make_model(
            decoder=dataclasses.asdict(decoder(layers, *replaced)),
            connector={"image_boundary_tokens": True},
        )

    return make


def hidden(params, config: DecoderConfig) -> jax.Array:
    """States after each block, before the final norm."""
    names = {path: value for path, value in params.items() if path.startswith("decoder/")}
    model = parameters.abstract(LanguageModelConfig(config, compute_dtype="float32"))[0].merge(
        names
    )
    return model.hidden_states(jnp.arange(6)[None])


def logits(params, config: DecoderConfig) -> jax.Array:
    names = {path: value for path, value in params.items() if path.startswith("decoder/")}
    model = parameters.abstract(LanguageModelConfig(config, compute_dtype="float32"))[0].merge(
        names
    )
    return model(jnp.arange(6)[None])


def test_up_to_the_translator_a_surrogate_computes_what_its_target_does_bit_for_bit(
    models, random_params
):
    target, small = models(), models((2, 5))
    params = random_params(target)
    made, _ = transitions.apply(("surrogate",), params, target, small, KEY, stage="s")
    ours, theirs = hidden(made, small.decoder), hidden(params, target.decoder)
    for block in range(3):  # the translator is the third: it begins as block 2
        np.testing.assert_array_equal(ours[block], theirs[block])
    assert not np.allclose(ours[3], theirs[3])


def test_a_range_of_one_block_gives_the_whole_model(models, random_params):
    target, small = models(), models((3, 4))
    params = random_params(target)
    made, _ = transitions.apply(("surrogate",), params, target, small, KEY, stage="s")
    np.testing.assert_array_equal(logits(made, small.decoder), logits(params, target.decoder))


def test_what_needs_no_copy_is_none(models, random_params):
    target, small = models(), models((2, 5))
    params = random_params(target)
    made, manifest = transitions.apply(("surrogate",), params, target, small, KEY, stage="s")
    for path, value in params.items():
        if not path.startswith("decoder/layers/"):
            assert made[path] is value
    notes = {
        entry.target.split("/")[1]: entry.note
        for entry in manifest.entries
        if "/layers/" in entry.target and entry.note
    }
    assert notes["translators"] == "begins as block 2, in the place of 2 to 4"
    assert {
        entry.note for entry in manifest.entries if entry.target.startswith("decoder/kept_layers/")
    } == {"blocks 0 to 1", "block 5"}


def test_grafting_takes_encoder_and_connector_and_nothing_else(models, random_params):
    target, small = models(), models((2, 5))
    whole = random_params(target)
    trained = random_params(small, seed=1)
    made, manifest = transitions.apply(
        ("graft",), trained, small, target, KEY, stage="g", loaded={"decoder"}
    )
    assert set(made) == {path for path in whole if not path.startswith("decoder/")}
    assert all(made[path] is trained[path] for path in made)
    assert set(manifest.dropped) == {path for path in trained if path.startswith("decoder/")}
    decoder_of_target = {
        path: value for path, value in whole.items() if path.startswith("decoder/")
    }
    back, _ = transitions.apply(
        ("surrogate",), made | decoder_of_target, target, small, KEY, stage="s"
    )
    for path in made:
        assert back[path] is trained[path], path
    assert any(path.startswith("connector/image_boundary_tokens/") for path in made)


def test_a_plan_of_grafting_computes_nothing(models):
    manifest = transitions.plan(("graft",), models((2, 5)), models(), stage="g", loaded={"decoder"})
    assert {entry.target.split("/")[0] for entry in manifest.entries} == {"vision", "connector"}


@pytest.mark.parametrize(
    ("names", "old", "new", "loaded", "message"),
    [
        (("surrogate",), ((2, 5),), ((2, 5),), (), "already"),
        (("surrogate",), (), (), (), "no surrogate"),
        (("graft",), (), (), ("decoder",), "no surrogate"),
        (("graft",), ((2, 5),), ((2, 5),), ("decoder",), "still a surrogate"),
        (("graft",), ((2, 5),), (), (), "init_from.decoder"),
        ((), ((2, 5),), (), (), "'graft'"),
        ((), (), ((2, 5),), (), "'surrogate'"),
        ((), ((2, 5),), ((1, 4),), (), "misshapen"),
        ((), ((2, 5),), (), ("decoder",), "'graft'"),
        ((), ((1, 4), (4, 5)), ((1, 2), (2, 5)), (), "is now"),
    ],
)
def test_what_cannot_be_done_says_why(models, names, old, new, loaded, message):
    with pytest.raises(InputError, match=message):
        transitions.plan(names, models(*old), models(*new), stage="s", loaded=loaded)


@pytest.mark.parametrize(
    ("field", "value"), [("vocabulary", 16), ("width", 16), ("layers", 7), ("rope_theta", 5e5)]
)
def test_a_target_that_the_surrogate_was_not_cut_from_is_refused(models, field, value):
    small, target = models((2, 5)), models()
    other = dataclasses.replace(
        target, decoder=dataclasses.replace(target.decoder, **{field: value})
    )
    with pytest.raises(InputError, match=f"decoder.{field} of the surrogate is"):
        transitions.plan(("graft",), small, other, stage="s", loaded={"decoder"})


def test_stacks_come_apart_and_together_again(models, random_params):
    target, small = models(), models((2, 5))
    params = random_params(target)
    apart = cut(params, "decoder", small.decoder.layer_ranges)
    assert set(apart) == set(parameters.abstract(small)[1])
    joined = join(apart, "decoder", small.decoder.layer_ranges)
    for path, value in joined.items():
        source, _ = (
            in_one_stack(path, target.decoder) if path.startswith("decoder/") else (path, None)
        )
        expected = params[source]
        if path.startswith("decoder/layers/"):
            expected = expected[jnp.array(small.decoder.blocks)]
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("compiled", "tolerance"), [(True, 1e-5), pytest.param(False, 0.0, marks=pytest.mark.slow)]
)
def test_late_blocks_of_an_encoder_lie_apart_and_compute_the_same(
    make_model, random_params, compiled, tolerance
):
    """Bit for bit where each operation is a program; the compiler may order the sums of a whole one otherwise."""
    whole = make_model(vision={"layers": 4}, connector={"feature_layers": (2, 4)})
    apart = dataclasses.replace(
        whole, vision=dataclasses.replace(whole.vision, separate_last_layers=1)
    )
    params = random_params(whole)
    pixels = jax.random.randint(KEY, (1, 1, 28, 28, 3), 0, 255).astype(jnp.uint8)

    def encode(model, params):
        model_def = parameters.abstract(model)[0]

        def run(params, pixels):
            return model_def.merge(params).encode_images(pixels)

        return (jax.jit(run) if compiled else run)(params, pixels)

    found = encode(apart, cut(params, "vision", apart.vision.layer_ranges))
    np.testing.assert_allclose(found, encode(whole, params), rtol=tolerance, atol=tolerance)


def test_visual_tokens_of_the_papers_connector(make_model, random_params):
    connector = MLPConfig(
        "mlp", (2,), 16, class_token=True, final_norm=True, image_boundary_tokens=True
    )
    model = dataclasses.replace(make_model(vision={"final_norm": True}), connector=connector)
    model_def, shapes = parameters.abstract(model)
    assert model.visual_tokens == 16 + 1 + 2
    assert shapes["connector/image_boundary_tokens/start"].shape == (12,)
    params = random_params(model)
    pixels = jnp.zeros((2, 1, 28, 28, 3), jnp.uint8)
    tokens = jax.jit(lambda params: model_def.merge(params).encode_images(pixels))(params)
    assert tokens.shape == (2, 1, 19, 12)
    np.testing.assert_array_equal(
        tokens[0, 0, 0], params["connector/image_boundary_tokens/start"].astype(tokens.dtype)
    )
    np.testing.assert_array_equal(
        tokens[0, 0, -1], params["connector/image_boundary_tokens/end"].astype(tokens.dtype)
    )


def test_a_surrogate_reads_token_by_token_what_it_reads_at_once():
    config = LanguageModelConfig(decoder(6, (2, 5)), compute_dtype="float32")
    model = parameters.abstract(config)[0].merge(parameters.initialize(config, KEY))

    @jax.jit
    def read(tokens, positions, mask, cache=None):
        return model.decoder(model.decoder.embed_tokens(tokens), positions, mask, cache)

    tokens = jnp.arange(6)[None]
    at_once, _ = read(tokens, tokens, IntervalMask.from_segments(jnp.ones((1, 6), jnp.int32)))
    cache = KVCache.empty(config.decoder, 1, 6, jnp.dtype("float32"))
    assert cache.keys.shape[0] == 4
    found = []
    for position in range(6):
        at = jnp.full((1, 1), position)
        mask = IntervalMask(jnp.zeros((1, 1), jnp.int32), at + 1)
        state, cache = read(tokens[:, position : position + 1], at, mask, cache)
        cache = dataclasses.replace(cache, length=cache.length + 1)
        found.append(state)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), at_once, atol=1e-5)


@pytest.mark.parametrize(
    ("remat", "unroll"),
    [
        ("full", 3),
        pytest.param("dots", 3, marks=pytest.mark.slow),
        pytest.param("full", 1, marks=pytest.mark.slow),
        pytest.param("dots", 1, marks=pytest.mark.slow),
    ],
)
def test_recomputing_and_unrolling_change_no_gradient(make_model, random_params, remat, unroll):
    plain = make_model(
        decoder=dataclasses.asdict(decoder(6, (2, 5))),
        vision={"layers": 4, "separate_last_layers": 1},
        connector={"feature_layers": (2, 4)},
    )
    params = random_params(plain)
    pixels = jax.random.randint(KEY, (1, 1, 28, 28, 3), 0, 255).astype(jnp.uint8)

    def gradient(model):
        model_def = parameters.abstract(model)[0]

        def loss(params):
            module = model_def.merge(params)
            seen = module.encode_images(pixels)[0]
            mask = IntervalMask.from_segments(jnp.ones(seen.shape[:2], jnp.int32))
            return jnp.square(module.decoder(seen, jnp.arange(seen.shape[1])[None], mask)[0]).sum()

        return jax.jit(jax.grad(loss))(params)

    expected = gradient(plain)
    found = gradient(dataclasses.replace(plain, remat=remat, unroll=unroll))
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-3, atol=1e-4, err_msg=path)
