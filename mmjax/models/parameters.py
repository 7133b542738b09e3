"""Parameters as one flat dictionary from path to array: taken out of a module, put back, made, counted, matched."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.config import LanguageModelConfig, ModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.models.vlm import VLM, LanguageModel, VisionEncoder
from mmjax.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class ModelDef:
    """A module without its numbers: hashable, so that it can be closed over by compiled functions."""

    graph: nnx.GraphDef[Any]
    paths: tuple[tuple[Any, ...], ...]

    def merge(self, params: Params) -> Any:
        """The module with these numbers. Cheap: used at trace time, inside compiled functions."""
        names = [_name(path) for path in self.paths]
        assert set(names) == set(params), sorted(set(names) ^ set(params))
        flat = {path: nnx.Param(params[name]) for path, name in zip(self.paths, names, strict=True)}
        return nnx.merge(self.graph, nnx.from_flat_state(flat))


def build(config: ModelConfig, rngs: nnx.Rngs) -> VLM | LanguageModel | VisionEncoder:
    """The module of a config, with freshly drawn parameters."""
    match config:
        case LanguageModelConfig():
            return LanguageModel(config, rngs)
        case VisionEncoderConfig():
            return VisionEncoder(config, rngs)
        case _:
            return VLM(config, rngs)


def split(model: nnx.Module) -> tuple[ModelDef, Params]:
    """A module's definition and its parameters by path."""
    graph, state = nnx.split(model, nnx.Param)
    flat = dict(nnx.to_flat_state(state))
    model_def = ModelDef(graph, tuple(sorted(flat, key=_name)))
    return model_def, {_name(path): flat[path][...] for path in model_def.paths}


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


@functools.cache
def _abstract(
    config: ModelConfig,
) -> tuple[ModelDef, dict[str, jax.ShapeDtypeStruct], dict[str, tuple[str | None, ...]]]:
    model = nnx.eval_shape(lambda: build(config, nnx.Rngs(0)))
    graph, state = nnx.split(model, nnx.Param)
    flat = dict(nnx.to_flat_state(state))
    model_def = ModelDef(graph, tuple(sorted(flat, key=_name)))
    shapes = {
        _name(path): jax.ShapeDtypeStruct(flat[path].shape, flat[path].dtype)
        for path in model_def.paths
    }
    axes = {_name(path): _axes(flat[path]) for path in model_def.paths}
    return model_def, shapes, axes


def _axes(parameter: Any) -> tuple[str | None, ...]:
    axes = parameter.get_metadata("axes")
    return ("layers",) * (len(parameter.shape) - len(axes)) + tuple(axes)


def abstract(config: ModelConfig) -> tuple[ModelDef, dict[str, jax.ShapeDtypeStruct]]:
    """The definition and the shapes of a model; nothing is allocated."""
    model_def, shapes, _ = _abstract(config)
    return model_def, dict(shapes)


@functools.cache
def visual_embedding_shape(config: VLMConfig) -> tuple[int, ...]:
    """[L, D] of what the connector makes of an image, from the module itself; nothing is computed."""
    vision, connector = config.vision, config.connector
    model_def, shapes = abstract(config)
    patches = jax.ShapeDtypeStruct(
        (1, vision.patches + connector.class_token, vision.width), jnp.dtype(config.compute_dtype)
    )
    features = (patches,) * len(connector.feature_layers)
    made = jax.eval_shape(
        lambda params, features: model_def.merge(params).connector(features), shapes, features
    )
    return made.shape[1:]


def logical_axes(config: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical name of every axis of every parameter ("embed", "heads", "kv_heads", "mlp", "vocabulary", "layers", "norm" or None)."""
    return dict(_abstract(config)[2])


def initialize(config: ModelConfig, key: Array) -> Params:
    """Freshly drawn float32 parameters, made in one compiled call."""
    return jax.jit(lambda key: split(build(config, nnx.Rngs(key)))[1])(key)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter path matches one of the globs; `*` matches across slashes: "decoder/*/lora_?"."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def count(params: Mapping[str, Any]) -> int:
    """How many numbers the arrays (or shapes) hold."""
    return sum(math.prod(value.shape) for value in params.values())
