"""Low-rank updates that begin between stages, and that end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import transitions
from mmjax.errors import InputError
from mmjax.kernels.attention import IntervalMask
from mmjax.models import parameters
from mmjax.models.config import LoRAConfig
from mmjax.transitions.lora import merged_kernel

LORA = LoRAConfig(rank=3, alpha=12.0)


def logits(config, params):
    """Of a fixed text, by the decoder."""
    tokens, positions = jnp.arange(10).reshape(2, 5), jnp.broadcast_to(jnp.arange(5), (2, 5))
    mask = IntervalMask.from_segments(jnp.ones_like(tokens))

    @jax.jit
    def forward(params):
        decoder = parameters.abstract(config)[0].merge(params).decoder
        return decoder.logits(decoder(decoder.embed_tokens(tokens), positions, mask)[0])

    return np.asarray(forward(params))


@pytest.fixture
def plain(make_model):
    return make_model()


@pytest.fixture
def adapted(make_model):
    return make_model(lora=LORA)


def test_attaching_changes_nothing_yet(plain, adapted, random_params):
    before = random_params(plain)
    after, manifest = transitions.apply(
        ("attach_lora",), before, plain, adapted, jax.random.key(0), stage="finetune"
    )
    np.testing.assert_array_equal(logits(plain, before), logits(adapted, after))
    fresh = {entry.target for entry in manifest.entries if entry.how == "fresh"}
    assert fresh == after.keys() - before.keys() and len(fresh) == 2 * 7
    assert all(not after[path].any() for path in fresh if path.endswith("lora_b"))


def test_attached_factors_are_drawn_by_their_fan_in(make_model, random_params):
    wide = {"width": 256, "mlp_width": 512}
    plain, adapted = make_model(decoder=wide), make_model(decoder=wide, lora=LORA)
    after, _ = transitions.apply(
        ("attach_lora",), random_params(plain), plain, adapted, jax.random.key(0), stage="finetune"
    )
    for path in (path for path in after if path.endswith("lora_a")):
        np.testing.assert_allclose(
            after[path].std(), after[path].shape[-2] ** -0.5, rtol=0.25, err_msg=path
        )
        assert not np.allclose(after[path][0], after[path][1]), "layers are drawn apart"
    a, b = "decoder/layers/attention/query/lora_a", "decoder/layers/attention/value/lora_a"
    assert not np.allclose(after[a], after[b]), "maps are drawn apart"


def test_attaching_is_a_function_of_the_key(plain, adapted, random_params):
    before = random_params(plain)
    one, same, other = (
        transitions.apply(
            ("attach_lora",), before, plain, adapted, jax.random.key(seed), stage="finetune"
        )[0]
        for seed in (0, 0, 1)
    )
    path = "decoder/layers/mlp/up/lora_a"
    np.testing.assert_array_equal(one[path], same[path])
    assert not np.allclose(one[path], other[path])


def test_merging_keeps_what_the_model_computes(plain, adapted, random_params):
    before = random_params(adapted)
    after, manifest = transitions.apply(
        ("merge_lora",), before, adapted, plain, jax.random.key(0), stage="export"
    )
    with_updates, merged = logits(adapted, before), logits(plain, after)
    without = logits(plain, {path: value for path, value in before.items() if path in after})
    assert np.abs(with_updates - without).max() > 0.1, "the updates do something"
    np.testing.assert_allclose(merged, with_updates, atol=2e-5, rtol=1e-5)
    assert not any("lora" in path for path in after) and manifest.dropped == ()
    assert {entry.target.split("/")[-1] for entry in manifest.entries if entry.how == "merged"} == {
        "kernel"
    }


def test_merging_what_was_just_attached_gives_the_same_bits(plain, adapted, random_params):
    before = random_params(plain)
    attached, _ = transitions.apply(
        ("attach_lora",), before, plain, adapted, jax.random.key(0), stage="finetune"
    )
    after, _ = transitions.apply(
        ("merge_lora",), attached, adapted, plain, jax.random.key(0), stage="export"
    )
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path])


def test_the_update_is_scaled_by_alpha_over_rank():
    kernel, a, b = jnp.zeros((1, 2, 2)), jnp.ones((1, 2, 4)), jnp.full((1, 4, 2), 0.5)
    np.testing.assert_allclose(
        merged_kernel(kernel, a, b, alpha=8.0), np.full((1, 2, 2), 4 * 0.5 * 8 / 4)
    )


def test_a_kernel_kept_in_bfloat16_is_merged_in_float32(plain, adapted, random_params):
    before = random_params(adapted)
    path = "decoder/layers/mlp/up/kernel"
    before[path] = before[path].astype(jnp.bfloat16)
    after, _ = transitions.apply(
        ("merge_lora",), before, adapted, plain, jax.random.key(0), stage="export"
    )
    assert after[path].dtype == jnp.float32


def test_new_updates_after_the_old_ones_are_merged(make_model, adapted, random_params):
    again = make_model(lora=LoRAConfig(rank=2, alpha=2.0))
    before = random_params(adapted)
    after, manifest = transitions.apply(
        ("merge_lora", "attach_lora"), before, adapted, again, jax.random.key(0), stage="second"
    )
    assert after["decoder/layers/mlp/up/lora_a"].shape[-1] == 2
    np.testing.assert_allclose(logits(again, after), logits(adapted, before), atol=2e-5, rtol=1e-5)
    assert manifest.dropped == ()


@pytest.mark.parametrize(
    ("names", "old", "new", "message"),
    [
        (("attach_lora",), LORA, LORA, "there are low-rank updates already.*'merge_lora'"),
        (("attach_lora",), LoRAConfig(), LoRAConfig(), r"has none \(lora.rank is 0"),
        (("merge_lora",), LoRAConfig(), LoRAConfig(), "have no low-rank updates"),
        ((), LoRAConfig(), LORA, "'attach_lora' adds them"),
        ((), LORA, LoRAConfig(), "'merge_lora' adds them to their kernels"),
        ((), LORA, LoRAConfig(3, alpha=6.0), "lora.alpha was 12 and is now 6"),
    ],
)
def test_refusals(names, old, new, message, make_model):
    with pytest.raises(InputError, match=message):
        transitions.plan(names, make_model(lora=old), make_model(lora=new), stage="finetune")
