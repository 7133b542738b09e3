"""Parameters by path: out of a model and back, counted, named, matched."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.distributed.mesh import RULES
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig, LoRAConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.models.presets import clip_vit_l14, llama3_8b, vicuna_7b

COS_7B = VLMConfig(
    clip_vit_l14(448, layers=23),
    ResamplerConfig(
        "resampler", (32, 8, 2), (16, 256, 1024), (16, 23), width=1024, head_dim=64, mlp_width=4096
    ),
    vicuna_7b(),
    lora=LoRAConfig(rank=64, alpha=64.0),
)


def test_what_is_split_merges_to_the_same_function(make_vlm, make_row):
    model, row = make_vlm(), make_row([[3, 4, 5]])
    model_def, params = parameters.split(model)
    ours = jax.jit(lambda params, row: model_def.merge(params)(row))(params, row)
    np.testing.assert_allclose(ours, jax.jit(lambda row: model(row))(row), atol=1e-6)
    again, same = parameters.split(model_def.merge(params))
    assert again == model_def and hash(again) == hash(model_def)
    assert all(same[path] is params[path] for path in params)


def test_abstract_shapes_are_those_of_initialised_parameters(config, make_vlm):
    _, shapes = parameters.abstract(config)
    _, params = parameters.split(make_vlm())
    assert {p: (v.shape, v.dtype) for p, v in params.items()} == {
        p: (s.shape, s.dtype) for p, s in shapes.items()
    }


@pytest.mark.slow
def test_initialisation_of_every_part_follows_the_key(config):
    params, again, other = (
        parameters.initialize(config, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(params[path], again[path]) for path in params)
    drawn = {path for path in params if np.std(params[path]) > 0}
    assert {path.split("/")[0] for path in drawn} == {"vision", "connector", "decoder"}
    assert all(not np.array_equal(params[path], other[path]) for path in drawn)


def test_initialisation_follows_the_key_and_the_deviations(config):
    decoder = dataclasses.replace(
        config.decoder, width=64, mlp_width=512, vocabulary=400, weight_std=None, embedding_std=0.5
    )
    config = LanguageModelConfig(decoder)
    params, again, other = (
        parameters.initialize(config, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(params[path], again[path]) for path in params)
    assert not np.array_equal(params["decoder/embedding"], other["decoder/embedding"])
    assert np.std(params["decoder/embedding"]) == pytest.approx(0.5, rel=0.02)
    assert np.std(params["decoder/layers/mlp/up/kernel"]) == pytest.approx(64**-0.5, rel=0.02)
    layers = params["decoder/layers/attention/query/kernel"]
    assert not np.array_equal(layers[0], layers[1])


def test_trainable_parameters_of_cos_7b():
    _, shapes = parameters.abstract(COS_7B)
    trained = {
        path: shape
        for path, shape in shapes.items()
        if parameters.matches(path, ("vision/*", "connector/*", "*/lora_?"))
    }
    assert round(parameters.count(trained) / 1e6, 2) == 532.37
    lora = {
        path: shape for path, shape in shapes.items() if parameters.matches(path, ("*/lora_?",))
    }
    assert round(parameters.count(lora) / 1e6, 2) == 159.91 and len(lora) == 14
    vision = {path: shape for path, shape in shapes.items() if path.startswith("vision/")}
    assert round(parameters.count(vision) / 1e6, 2) == 291.37


@pytest.mark.parametrize(
    ("decoder", "count"), [(vicuna_7b(), 6_738_415_616), (llama3_8b(), 8_030_261_248)]
)
def test_decoders_have_as_many_parameters_as_the_published_ones(decoder, count):
    _, shapes = parameters.abstract(dataclasses.replace(COS_7B, decoder=decoder, lora=LoRAConfig()))
    assert (
        parameters.count(
            {path: shape for path, shape in shapes.items() if path.startswith("decoder/")}
        )
        == count
    )


def test_every_axis_has_a_name_that_the_sharding_table_knows():
    axes, (_, shapes) = parameters.logical_axes(COS_7B), parameters.abstract(COS_7B)
    assert axes.keys() == shapes.keys()
    assert all(len(axes[path]) == len(shapes[path].shape) for path in axes)
    experts = parameters.logical_axes(
        LanguageModelConfig(dataclasses.replace(llama3_8b(), experts=8))
    )
    assert {name for names in (axes | experts).values() for name in names} - {None} == set(RULES)
    assert axes["decoder/layers/attention/query/kernel"] == ("layers", "embed", "heads")
    assert axes["decoder/layers/mlp/down/lora_a"] == ("layers", "mlp", None)


def test_the_linear_connector_is_one_projection(config):
    connector = LinearConfig("linear", (3,))
    _, shapes = parameters.abstract(dataclasses.replace(config, connector=connector))
    assert {path for path in shapes if path.startswith("connector")} == {
        "connector/projection/kernel",
        "connector/projection/bias",
    }
    assert connector.visual_tokens(config.vision) == 16


def test_lora_that_matches_nothing_is_refused(config):
    with pytest.raises(
        ValueError,
        match=r"'decoder/\*/gates', which matches none of the linear maps: .*decoder/layers/mlp/gate",
    ):
        parameters.abstract(
            dataclasses.replace(config, lora=LoRAConfig(rank=2, targets=("decoder/*/gates",)))
        )


def test_globs_reach_across_slashes():
    assert parameters.matches("decoder/layers/mlp/up/lora_a", ("vision/*", "*/lora_?"))
    assert not parameters.matches("decoder/layers/mlp/up/kernel", ("vision/*", "*/lora_?"))
