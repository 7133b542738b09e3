"""The whole of a transition: every parameter accounted for, or a refusal that says what is wanting."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import transitions
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import LoRAConfig
from mmjax.transitions import Entry, Manifest

ALL = ("inflate", "resize_positions", "attach_lora")


@pytest.fixture
def stages(make_model):
    return make_model(28, (4, 2), (2, 8)), make_model(
        56, (8, 4, 2), (2, 8, 32), parents=(0, 0, 1), lora=LoRAConfig(2)
    )


def test_the_manifest_covers_every_parameter(stages, random_params):
    old, new = stages
    params, manifest = transitions.apply(
        ALL, random_params(old), old, new, jax.random.key(0), stage="finetune"
    )
    expected = parameters.abstract(new)[1]
    assert [entry.target for entry in manifest.entries] == sorted(expected)
    for entry in manifest.entries:
        leaf, value = expected[entry.target], params[entry.target]
        assert (
            (leaf.shape, leaf.dtype)
            == (value.shape, value.dtype)
            == (entry.shape, np.dtype(entry.dtype))
        )
        assert (entry.source is None) == (entry.how == "fresh")
    assert {entry.how for entry in manifest.entries} == {"copied", "tiled", "resized", "fresh"}
    assert (manifest.stage, manifest.transitions, manifest.dropped) == ("finetune", ALL, ())


def test_what_no_transition_touches_is_the_same_array(stages, random_params):
    old, new = stages
    before = random_params(old)
    after, _ = transitions.apply(ALL, before, old, new, jax.random.key(0), stage="finetune")
    for path in (
        "decoder/embedding",
        "vision/layers/mlp/up/kernel",
        "connector/projection/kernel",
        "connector/norm/scale",
    ):
        assert after[path] is before[path]


def test_a_plan_says_what_will_happen(stages, random_params):
    old, new = stages
    _, manifest = transitions.apply(
        ALL, random_params(old), old, new, jax.random.key(0), stage="finetune"
    )
    assert transitions.plan(ALL, old, new, stage="finetune") == manifest


def test_it_compiles(stages, random_params):
    old, new = stages
    before = random_params(old)
    plain, _ = transitions.apply(ALL, before, old, new, jax.random.key(0), stage="finetune")
    compiled = jax.jit(
        lambda params, key: transitions.apply(ALL, params, old, new, key, stage="finetune")[0]
    )(before, jax.random.key(0))
    for path, value in plain.items():
        np.testing.assert_allclose(compiled[path], value, atol=1e-6, err_msg=path)


def test_no_transition_between_equal_models(make_model, random_params):
    config = make_model()
    before = random_params(config)
    after, manifest = transitions.apply(
        (), before, config, config, jax.random.key(0), stage="second"
    )
    assert after == before and {entry.how for entry in manifest.entries} == {"copied"}


def test_a_linear_connector_reads_more_patches_as_it_is(make_model, random_params):
    old, new = make_model(28, linear=True), make_model(56, linear=True)
    after, _ = transitions.apply(
        ("resize_positions",), random_params(old), old, new, jax.random.key(0), stage="finetune"
    )
    assert after.keys() == parameters.abstract(new)[1].keys()


def test_origins_are_told_through_several_transitions(make_model, random_params):
    """A kernel that a scale inherits, and that then takes in its low-rank update, comes from three parameters of the parent."""
    lora = LoRAConfig(2, targets=("connector/scales/*",))
    old, new = make_model(lora=lora), make_model(28, (4, 4), (2, 2), parents=(0, 0))
    _, manifest = transitions.apply(
        ("inflate", "merge_lora"), random_params(old), old, new, jax.random.key(0), stage="finetune"
    )
    entry = next(
        entry
        for entry in manifest.entries
        if entry.target == "connector/scales/1/blocks/0/key/kernel"
    )
    assert (entry.how, entry.source) == ("merged", "connector/scales/0/blocks/0/key/kernel")
    assert entry.sources[1:] == (
        "connector/scales/0/blocks/0/key/lora_a",
        "connector/scales/0/blocks/0/key/lora_b",
    )
    assert manifest.dropped and all(
        path.startswith("connector/scales/1/") for path in manifest.dropped
    )


def test_a_frozen_matrix_may_be_kept_in_bfloat16(make_model, random_params):
    config = make_model()
    before = random_params(config)
    before["decoder/lm_head/kernel"] = before["decoder/lm_head/kernel"].astype(jnp.bfloat16)
    _, manifest = transitions.apply((), before, config, config, jax.random.key(0), stage="second")
    assert (
        next(entry for entry in manifest.entries if entry.target == "decoder/lm_head/kernel").dtype
        == "bfloat16"
    )


def test_any_other_dtype_is_refused(make_model, random_params):
    config = make_model()
    before = random_params(config)
    before["decoder/lm_head/kernel"] = before["decoder/lm_head/kernel"].astype(jnp.float16)
    with pytest.raises(
        InputError, match="mistyped: decoder/lm_head/kernel is float16 and should be float32"
    ):
        transitions.apply((), before, config, config, jax.random.key(0), stage="second")


WANTING = {
    "inflate": ((), {"windows": (4, 1), "queries": (2, 32)}, "'inflate' grows them"),
    "inflate, a scale more": (
        (),
        {"windows": (4, 4, 2), "queries": (2, 2, 8)},
        "'inflate' grows them.*missing: connector/scales/2/",
    ),
    "inflate, parents": (
        (),
        {"parents": (0, 0)},
        "parents is .0, 0., which only 'inflate' follows",
    ),
    "windows move": (
        (),
        {"windows": (4, 4)},
        "scale 1 of the connector had 2 x 2 windows and now has 1 x 1",
    ),
    "positions": ((), {"image_size": 56, "windows": (8, 4)}, "'resize_positions' resizes"),
    "decoder width": (
        (),
        {"decoder": {"mlp_width": 20}},
        r"mlp_width was 16 and is now 20.*misshapen: decoder/layers/mlp/up/kernel is \(2, 12, 16\) and should be \(2, 12, 20\)",
    ),
    "tied head": (
        (),
        {"decoder": {"tie_word_embeddings": True}},
        "unexpected: decoder/lm_head/kernel",
    ),
    "untrained blocks": (
        (),
        {"vision": {"layers": 3}},
        "vision.layers was 2 and is now 3.*misshapen: vision/layers/attention/key/bias",
    ),
    "vision heads": ((), {"vision": {"heads": 4}}, "vision.heads was 2 and is now 4"),
    "decoder heads": (
        (),
        {"decoder": {"heads": 4, "head_dim": 3, "kv_heads": 2}},
        "decoder.heads was 2 and is now 4",
    ),
    "connector heads": (
        (),
        {"connector": {"head_dim": 8}},
        "connector.head_dim was 4 and is now 8",
    ),
    "misspelt": (("inflat",), {}, "no transition 'inflat'. Did you mean inflate"),
    "unknown": (("upcycle",), {}, "There are: inflate, attach_lora"),
}


@pytest.mark.parametrize("name", WANTING)
def test_a_refusal_names_what_is_wanting(name, make_model):
    names, changes, message = WANTING[name]
    with pytest.raises(InputError, match=rf"(?s)^stage 'finetune'.*{message}"):
        transitions.plan(names, make_model(), make_model(**changes), stage="finetune")


def test_a_long_list_is_cut_and_counted(make_model):
    with pytest.raises(InputError, match=r"\.\.\. and \d+ more") as caught:
        transitions.plan((), make_model(), make_model(28, (4, 4, 2), (2, 2, 8)), stage="finetune")
    assert len(str(caught.value).splitlines()) < 20


def test_a_manifest_survives_json(stages):
    manifest = transitions.plan(ALL, *stages, stage="finetune")
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_manifest_of_another_version_is_refused():
    with pytest.raises(InputError, match="version 7"):
        Manifest.from_json({"schema_version": 7, "entries": []})


def test_the_summary_groups_and_counts():
    entries = (
        Entry("decoder/a", "decoder/a", "copied", (2, 3), "float32"),
        Entry("decoder/b", "decoder/b", "copied", (1000,), "float32"),
        Entry("vision/position", "vision/position", "resized", (4,), "float32", "2 x 2 to 4 x 4"),
    )
    lines = Manifest(entries, dropped=("decoder/c",)).summary().splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["decoder", "copied", "2", "1,006"],
        ["vision", "resized", "1", "4", "2", "x", "2", "to", "4", "x", "4"],
    ]
    assert lines[3] == "dropped: decoder/c"
