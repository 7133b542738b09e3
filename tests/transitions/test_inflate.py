"""Compound token scaling: the published settings, what is copied where, and every refusal."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import transitions
from mmjax.errors import InputError
from mmjax.models import parameters, presets
from mmjax.models.config import LoRAConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.transitions.inflate import inflate, tile

# arXiv:2407.15819, token-scaling ablation (224 pixels are a grid of 16, 448 one of 32). By name: windows and queries of the stage before;
# pixels, windows, queries and parents of the stage; its visual tokens.
BASE = ((16, 4), (16, 64))
PUBLISHED = {
    "base, 224": (BASE, 224, (16, 4), (16, 64), (0, 1), 80),
    "base, 448": (BASE, 448, (32, 8), (16, 64), (0, 1), 80),
    "window, global": (BASE, 224, (16, 8, 4), (16, 64, 64), (0, 0, 1), 144),
    "window, local": (BASE, 224, (16, 2), (16, 256), (0, 1), 272),
    "window, both": (BASE, 224, (16, 8, 2), (16, 64, 256), (0, 0, 1), 336),
    "resolution, global": (BASE, 448, (32, 16, 8), (16, 64, 64), (0, 0, 1), 144),
    "resolution, local": (BASE, 448, (32, 4), (16, 256), (0, 1), 272),
    "resolution, both": (BASE, 448, (32, 16, 4), (16, 64, 256), (0, 0, 1), 336),
    "compound, global": (BASE, 448, (32, 8, 4), (16, 256, 256), (0, 0, 1), 528),
    "compound, local": (BASE, 448, (32, 16, 2), (16, 64, 1024), (0, 0, 1), 1104),
    "compound, local, middle scale from the local one": (
        BASE,
        448,
        (32, 8, 2),
        (16, 64, 1024),
        (0, 1, 1),
        1104,
    ),
    "compound, both": (BASE, 448, (32, 8, 2), (16, 256, 1024), (0, 0, 1), 1296),
    "compound, two scales from the local one": (
        BASE,
        448,
        (32, 4, 2),
        (16, 256, 1024),
        (0, 1, 1),
        1296,
    ),
    "from 336 pixels": (BASE, 336, (24, 6), (16, 64), (0, 1), 80),
    "48 tokens": (((16, 4), (16, 32)), 448, (32, 8, 2), (16, 256, 512), (0, 0, 1), 784),
    "32 tokens": (((16, 4), (16, 16)), 448, (32, 8, 2), (16, 256, 256), (0, 0, 1), 528),
    "32 tokens, 336": (((16, 4), (16, 16)), 448, (32, 16, 2), (16, 64, 256), (0, 0, 1), 336),
    "336 tokens": (((16, 8, 2), (16, 64, 256)), 448, (32, 16, 4), (16, 64, 256), (0, 1, 2), 336),
    "one window": (((16,), (80,)), 448, (32,), (80,), (), 80),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_have_their_shapes(name, make_model):
    (old_windows, old_queries), pixels, windows, queries, parents, tokens = PUBLISHED[name]
    small = {"vision": {"patch_size": 14}}
    old = make_model(224, old_windows, old_queries, **small)
    new = make_model(pixels, windows, queries, parents=parents, **small)
    manifest = transitions.plan(("inflate", "resize_positions"), old, new, stage="finetune")
    shapes = {entry.target: entry.shape for entry in manifest.entries}
    assert shapes == {path: leaf.shape for path, leaf in parameters.abstract(new)[1].items()}
    assert (
        sum(shapes[f"connector/scales/{i}/queries"][0] for i in range(len(windows)))
        == tokens
        == new.visual_tokens
    )
    origin = {entry.target: entry.source for entry in manifest.entries}
    for scale, parent in enumerate(parents):
        assert origin[f"connector/scales/{scale}/queries"] == f"connector/scales/{parent}/queries"
        assert (
            origin[f"connector/scales/{scale}/blocks/1/mlp/up/kernel"]
            == f"connector/scales/{parent}/blocks/1/mlp/up/kernel"
        )
    assert manifest.dropped == ()


def test_chain_of_sight_7b_has_its_published_parameters():
    """The paper lists 532 M trainable parameters: 291.37 M encoder, 81.10 M connector (54.66 M before), 159.91 M LoRA."""
    resampler = ResamplerConfig(
        "resampler", (16, 4), (16, 64), (16, 23), width=1024, head_dim=64, mlp_width=4096
    )
    old = VLMConfig(presets.clip_vit_l14(layers=23), resampler, presets.vicuna_7b())
    grown = dataclasses.replace(
        resampler, windows=(32, 8, 2), queries=(16, 256, 1024), parents=(0, 0, 1)
    )
    new = VLMConfig(
        presets.clip_vit_l14(448, layers=23), grown, presets.vicuna_7b(), LoRAConfig(64)
    )
    manifest = transitions.plan(
        ("inflate", "resize_positions", "attach_lora"), old, new, stage="finetune"
    )

    def millions(*parts):
        return round(
            sum(entry.size for entry in manifest.entries if entry.target.startswith(parts)) / 1e6, 2
        )

    lora = tuple(entry.target for entry in manifest.entries if entry.how == "fresh")
    before = {
        path: leaf
        for path, leaf in parameters.abstract(old)[1].items()
        if path.startswith("connector")
    }
    assert round(parameters.count(before) / 1e6, 2) == 54.66
    assert (millions("vision"), millions("connector"), millions(*lora)) == (291.37, 81.10, 159.91)
    assert millions("vision", "connector", *lora) == 532.37


def test_equal_tokens_change_no_bit(make_model, random_params):
    old, new = make_model(28, (4, 2), (2, 8)), make_model(56, (8, 4), (2, 8), parents=(0, 1))
    before = random_params(old)
    after, _ = inflate(before, old, new, jax.random.key(0))
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path])


@hypothesis.given(
    side=st.integers(1, 4), factor=st.integers(1, 4), per_window=st.integers(1, 3), data=st.data()
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_every_window_starts_with_the_queries_of_the_window_it_was_split_from(
    side, factor, per_window, data
):
    queries = np.arange(side * side * per_window * 2.0).reshape(-1, 2)
    grown = tile(queries, side, factor)
    assert grown.shape == (len(queries) * factor**2, 2)
    row, column = (
        data.draw(st.integers(0, side * factor - 1)),
        data.draw(st.integers(0, side * factor - 1)),
    )
    child, parent = row * side * factor + column, (row // factor) * side + column // factor
    np.testing.assert_array_equal(
        grown[child * per_window : (child + 1) * per_window],
        queries[parent * per_window : (parent + 1) * per_window],
    )


def test_constant_features_give_every_token_of_its_ancestor(make_model, random_params):
    """A window's softmax over equal patches does not depend on how many there are, so growth changes no token of a constant image."""
    old = make_model(28, (4, 2), (2, 8))
    new = make_model(56, (8, 4, 1), (2, 8, 128), parents=(0, 0, 1))
    before = random_params(old)
    after, _ = transitions.apply(
        ("inflate", "resize_positions"), before, old, new, jax.random.key(0), stage="finetune"
    )
    patch = jax.random.normal(jax.random.key(1), (2, 1, 8))

    def tokens(config, params):
        features = tuple(jnp.broadcast_to(level, (1, config.vision.patches, 8)) for level in patch)
        connector = jax.jit(
            lambda params: parameters.abstract(config)[0].merge(params).connector(features)
        )
        return np.asarray(connector(params))[0]

    ours, theirs = tokens(new, after), tokens(old, before)
    assert np.ptp(theirs, axis=0).min() > 0.01  # else any token would do
    middle, finest = ours[2:10].reshape(4, 2, -1), ours[10:].reshape(8, 8, 2, -1)
    parents = theirs[2:].reshape(2, 2, 2, -1)
    np.testing.assert_allclose(ours[:2], theirs[:2], atol=2e-6)
    for window in middle:  # the four middle windows come from the global one
        np.testing.assert_allclose(window, theirs[:2], atol=2e-6)
    for row, column in itertools.product(
        range(8), repeat=2
    ):  # 4 x 4 of the finest windows come from each of the 2 x 2 local ones
        np.testing.assert_allclose(finest[row, column], parents[row // 4, column // 4], atol=2e-6)


def test_children_own_their_weights(make_model, random_params):
    """Two leaves in one buffer could not be given up to a training step, and would not diverge in it."""
    old, new = make_model(), make_model(28, (4, 2, 2), (2, 8, 8), parents=(0, 0, 1))
    after, _ = inflate(random_params(old), old, new, jax.random.key(0))
    buffers = [value.unsafe_buffer_pointer() for value in after.values()]
    assert len(set(buffers)) == len(buffers)
    a, b = (f"connector/scales/{scale}/blocks/0/query/kernel" for scale in (0, 1))
    np.testing.assert_array_equal(after[a], after[b])
    moved = jax.jit(lambda params: params | {a: params[a] + 1}, donate_argnums=0)(after)
    assert not np.allclose(moved[a], moved[b])


def test_low_rank_updates_of_a_scale_go_with_it(make_model, random_params):
    lora = LoRAConfig(2, targets=("connector/scales/*",))
    old = make_model(lora=lora)
    new = make_model(28, (4, 4, 2), (2, 2, 8), parents=(0, 0, 1), lora=lora)
    before = random_params(old)
    after, _ = transitions.apply(
        ("inflate",), before, old, new, jax.random.key(0), stage="finetune"
    )
    path = "connector/scales/{}/blocks/0/key/lora_b"
    np.testing.assert_array_equal(after[path.format(1)], before[path.format(0)])
    np.testing.assert_array_equal(after[path.format(2)], before[path.format(1)])


def test_a_scale_without_children_is_left_behind_and_said_so(make_model, random_params):
    old, new = make_model(), make_model(28, (4,), (2,), parents=(0,))
    after, manifest = transitions.apply(
        ("inflate",), random_params(old), old, new, jax.random.key(0), stage="finetune"
    )
    assert not any(path.startswith("connector/scales/1") for path in after)
    assert "connector/scales/1/queries" in manifest.dropped
    assert all(path.startswith("connector/scales/1/") for path in manifest.dropped)
    assert "dropped: connector/scales/1/" in manifest.summary()


REFUSED = {
    "no square": (
        {"queries": (2, 16), "windows": (4, 2)},
        r"Scale 1 cannot grow from 8 to 16 queries, a factor of 2: .* 8 or 32 would do",
    ),
    "fewer queries": (
        {"queries": (2, 4), "windows": (4, 2)},
        r"Scale 1 cannot grow from 8 to 4 queries, a factor of 0.5: .* 8 or 32 would",
    ),
    "no whole factor": ({"queries": (2, 20), "windows": (4, 2)}, "a factor of 2.5"),
    "grid does not follow": (
        {"queries": (8, 8), "windows": (4, 2)},
        r"Scale 0 has 1 x 1 windows \(of 4 on a grid of 4\), but 4 times the queries of scale 0, .* 2 x 2, which is windows of 2\.",
    ),
    "grid grows alone": (
        {"queries": (2, 16), "windows": (4, 1), "parents": (0, 1)},
        "Scale 1 cannot grow|Scale 1 has 4 x 4",
    ),
    "windows do not tile": (
        {"queries": (2, 8), "windows": (4, 3)},
        "Scale 1: windows of 3 x 3 patches do not tile the grid of 4 x 4",
    ),
    "queries do not divide": (
        {"queries": (2, 9), "windows": (4, 2)},
        "Scale 1: 9 queries do not divide evenly over 2 x 2 windows",
    ),
    "parents missing": (
        {"queries": (2, 8, 8), "windows": (4, 2, 2)},
        r"parents is empty.* there were 2 scales and now there are 3.*\(0, 0, 1\)",
    ),
    "too few parents": (
        {"queries": (2, 8), "windows": (4, 2), "parents": (0,)},
        "one parent for each of 2 scales; it names 1",
    ),
    "unknown parent": (
        {"queries": (2, 8), "windows": (4, 2), "parents": (0, 2)},
        "names scale 2, but the stage before has scales 0 to 1",
    ),
    "ragged scales": (
        {"queries": (2,), "windows": (4, 2)},
        "of this stage must have a window and a number of queries",
    ),
    "no resampler": ({"linear": True}, "cannot grow a connector of kind 'linear'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_grow_is_refused(name, make_model):
    changes, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        inflate({}, make_model(), make_model(**changes), jax.random.key(0))


def test_a_linear_connector_has_nothing_to_grow_from(make_model):
    with pytest.raises(InputError, match="connector of the stage before is of kind 'linear'"):
        inflate({}, make_model(linear=True), make_model(), jax.random.key(0))
