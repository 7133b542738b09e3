"""Models in the form that published ones have: no low-rank updates, blocks in one stack, and the norm that their encoders end in."""

import dataclasses

import jax.numpy as jnp

from mmjax.models.config import DecoderConfig, LanguageModelConfig, LoRAConfig, ModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.transitions.lora import is_lora, merged_kernel
from mmjax.transitions.stacks import join
from mmjax.typing import Params


def writable(config: ModelConfig) -> ModelConfig:
    """The config of a model as it is written; it computes the same."""
    if isinstance(config, LanguageModelConfig):
        return dataclasses.replace(config, decoder=_one_stack(config.decoder))
    vision = dataclasses.replace(config.vision, late=0, final_norm=config.vision.final_norm or _lacks_norm(config))
    if isinstance(config, VisionEncoderConfig):
        return dataclasses.replace(config, vision=vision)
    return dataclasses.replace(config, vision=vision, decoder=_one_stack(config.decoder), lora=LoRAConfig())


def writable_params(params: Params, config: ModelConfig) -> Params:
    """The parameters for `writable(config)`: low-rank updates are merged into their kernels; a norm that is missing is of ones and zeros.

    Hidden states, which is what a connector reads, do not depend on that norm.
    """
    if isinstance(config, VLMConfig):
        params = _merged(params, config)  # before stacks are joined: some may have updates, and others none
    if not isinstance(config, VisionEncoderConfig):
        params = join(params, "decoder", config.decoder.spans)
    if isinstance(config, LanguageModelConfig):
        return params
    params = join(params, "vision", config.vision.spans)
    if _lacks_norm(config):
        width = config.vision.width
        params = params | {"vision/final_norm/scale": jnp.ones(width), "vision/final_norm/bias": jnp.zeros(width)}
    return params


def _one_stack(decoder: DecoderConfig) -> DecoderConfig:
    """A surrogate as a decoder of so many blocks."""
    return dataclasses.replace(decoder, layers=decoder.depth, replaced=(), translators=1)


def _lacks_norm(config: VLMConfig | VisionEncoderConfig) -> bool:
    return config.vision.norm == "layer" and not config.vision.final_norm


def _merged(params: Params, config: VLMConfig) -> Params:
    modules = [path.removesuffix("/lora_a") for path in params if path.endswith("/lora_a")]
    rest = {path: value for path, value in params.items() if not is_lora(path)}
    for module in modules:
        kernel = f"{module}/kernel"
        rest[kernel] = merged_kernel(params[kernel], params[f"{module}/lora_a"], params[f"{module}/lora_b"], config.lora.alpha)
    return rest
