"""Shapes of the step-time benchmark: token counts, what is scaled down and that it is said, packed and padded samples."""

import dataclasses

import numpy as np
import pytest
import step_time_batches
import step_time_shapes
import step_time_stages
from step_time_shapes import shape

from mmjax.config.load import load
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.training.flops import step_flops

GIB = 2.0**30
COS = {
    "cos_pretrain_32": "cos32-528",
    "cos_pretrain_48": "cos48-784",
    "cos_pretrain_80": "7b",
    "cos_pretrain_336": "cos336-336",
}
COS |= {"cos_finetune_336": "cos80-336", "cos_finetune_1296": "7b"}


@pytest.mark.parametrize("name", COS)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_chain_of_sight_has_its_tokens_and_its_grid(name: str, on_gpu: bool):
    stage = shape(name, on_gpu=on_gpu).stage
    assert stage.model.visual_tokens == int(name.rsplit("_", 1)[1])
    connector = stage.model.connector
    assert (
        isinstance(connector, ResamplerConfig) and stage.model.vision.grid == connector.windows[0]
    ), "the first window is the whole grid"
    assert stage.model.vision.grid == (16 if "pretrain" in name else 32)


@pytest.mark.parametrize("name", COS)
def test_chain_of_sight_is_the_recipe(name: str):
    """On a GPU the model, what is trained, and how, are those of configs/cos.py."""
    part = name.split("_")[1]
    recipe = load(f"configs/cos.py:{COS[name]}", partial=True).stages[part]
    stage = shape(name, on_gpu=True).stage
    connector = dataclasses.replace(recipe.model.connector, parents=())
    assert stage.model == dataclasses.replace(recipe.model, connector=connector)
    assert stage.trainable == recipe.trainable and stage.data.text_length == recipe.data.text_length
    assert (
        stage.optimizer.groups == recipe.optimizer.groups
        and stage.optimizer.learning_rate == recipe.optimizer.learning_rate
    )


@pytest.mark.parametrize(
    ("on_gpu", "config"), [(False, "configs/graft.py"), (True, "configs/graft.py:8b")]
)
def test_the_surrogate_is_the_recipe(on_gpu: bool, config: str):
    recipe = load(config, partial=True).stages["encoder"]
    stage = shape("surrogate", on_gpu=on_gpu).stage
    assert (stage.model, stage.trainable, stage.data.text_length) == (
        recipe.model,
        recipe.trainable,
        recipe.data.text_length,
    )


def test_language_models_have_published_widths_on_a_gpu():
    one, eight = (
        shape(name, on_gpu=True, memory=66 * GIB).stage for name in ("llm_1b", "llm_8b-slice")
    )
    assert (one.model.decoder.width, one.model.decoder.layers, one.data.text_length) == (
        2048,
        16,
        4096,
    )
    assert (eight.model.decoder.width, eight.model.decoder.mlp_width, eight.data.text_length) == (
        4096,
        14_336,
        4096,
    )
    assert 1 <= eight.model.decoder.layers < 32
    assert step_time_stages.needed(eight) <= 66 * GIB < step_time_stages.needed(_deeper(eight))
    assert (
        set(step_flops(one.model, one).parts) >= {"decoder", "lm_head"}
        and step_flops(one.model, one).parts["vision"].total == 0
    )


def _deeper(stage):
    decoder = dataclasses.replace(stage.model.decoder, layers=stage.model.decoder.layers + 1)
    return dataclasses.replace(stage, model=dataclasses.replace(stage.model, decoder=decoder))


def test_a_slice_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="not even one layer"):
        shape("llm_8b-slice", on_gpu=True, memory=GIB)


@pytest.mark.parametrize("name", step_time_shapes.BIG)
def test_what_is_smaller_is_said(name: str):
    small = shape(name, on_gpu=False)
    assert small.compared and small.stage.model.compute_dtype == "float32"
    said = step_time_shapes.said(small.scaled)
    full = (
        step_time_stages.text_stage("8b-slice", True)
        if name == "llm_8b-slice"
        else shape(name, on_gpu=True).stage
    )
    for path, (before, after) in small.scaled.items():
        assert str(before) in said and str(after) in said and path.removeprefix("model.") in said
    assert f"decoder.width {full.model.decoder.width} -> {small.stage.model.decoder.width}" in said
    assert not shape("llm_1b", on_gpu=True).scaled


@pytest.mark.parametrize("name", [name for name in step_time_shapes.BIG if name != "packed"])
def test_random_rows_fill_the_model(name: str):
    small = shape(name, on_gpu=False)
    ((batch, other),) = small.batches(1)
    stage = small.stage
    assert other is batch
    length = stage.data.text_length + stage.data.images_per_row * stage.model.visual_tokens
    assert batch.tokens.shape == (stage.batch_size, length)
    assert batch.images.shape[:2] == (stage.batch_size, stage.data.images_per_row)
    assert batch.tokens.max() < stage.model.decoder.vocabulary
    assert (
        step_time_batches.samples(batch) == stage.batch_size
        and step_time_batches.padding(batch) == 0
    )
    following = np.roll(batch.tokens, -1, 1)
    assert (batch.targets == following)[batch.targets >= 0].all() and (batch.targets >= 0).any()


def texts(batch) -> list[tuple[int, ...]]:
    return sorted(
        tuple(row[segments == segment])
        for row, segments in zip(batch.tokens, batch.segment_ids, strict=True)
        for segment in np.unique(segments[segments > 0])
    )


def test_packed_and_padded_rows_have_the_same_samples():
    stage = shape("packed", on_gpu=False).stage
    pairs = [step_time_batches.packed_and_padded(stage, seed) for seed in range(3)]
    for packed, padded in pairs:
        assert texts(packed) == texts(padded)
        assert (
            step_time_batches.samples(packed)
            == step_time_batches.samples(padded)
            == len(padded.tokens)
        )
        assert (packed.targets >= 0).sum() == (padded.targets >= 0).sum()
        assert packed.tokens.shape == (stage.batch_size, stage.data.text_length)
        assert (padded.segment_ids > 0).all(axis=1).any(), "padded to the longest"
        assert step_time_batches.padding(packed) < 0.5 * step_time_batches.padding(padded)
    assert len({padded.tokens.shape for _, padded in pairs}) == 1, (
        "one compilation serves all batches"
    )


@pytest.mark.parametrize("row", [64, 512, 4096])
def test_rows_of_any_length_are_packed(row: int):
    for seed in range(20):
        packed = step_time_batches.pack(np.random.default_rng(seed), 2, row, row // 4)
        assert (
            len(packed) == 2 and max(map(sum, packed)) <= row and max(map(max, packed)) == row // 4
        )
        assert sum(map(len, packed)) == step_time_batches.samples_per_batch(2, row)
    with pytest.raises(ValueError, match="do not fit"):
        step_time_batches.pack(np.random.default_rng(0), 2, row, 4 * row)


def test_an_unknown_shape_is_an_error():
    with pytest.raises(ValueError, match="llm_1b"):
        shape("llm_2b", on_gpu=False)


def test_the_default_recipe_is_not_measured_where_its_data_cannot_be_read():
    assert not set(step_time_shapes.names(True)) & set(step_time_shapes.DEFAULT)
    assert set(step_time_shapes.names(False)) == set(step_time_shapes.NAMES)


def test_the_default_recipe_brings_its_own_rows():
    found = shape("default_pretrain", on_gpu=False)
    ((batch, _),) = found.batches(1)
    assert not found.scaled and found.stage.model.visual_tokens == 20
    assert (
        batch.prefix_segment_ids.any() and step_time_batches.samples(batch) > found.stage.batch_size
    )
