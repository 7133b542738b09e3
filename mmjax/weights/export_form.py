"""Models in the form that published ones have: no low-rank updates, blocks in one stack, and the norm that their encoders end in."""

import dataclasses

import jax.numpy as jnp

from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    LoRAConfig,
    ModelConfig,
    VisionEncoderConfig,
    ViTConfig,
    VLMConfig,
)
from mmjax.transitions.lora import is_lora, merged_kernel
from mmjax.transitions.surrogate import join
from mmjax.typing import Params


def export_config(config: ModelConfig) -> ModelConfig:
    """The config of a model as it is written; it computes the same."""

    def one_stack(decoder: DecoderConfig) -> DecoderConfig:
        """A surrogate as a decoder of so many blocks."""
        return dataclasses.replace(decoder, layers=decoder.depth, replaced_layers=(), translators=1)

    if isinstance(config, LanguageModelConfig):
        return dataclasses.replace(config, decoder=one_stack(config.decoder))
    vision = dataclasses.replace(
        config.vision,
        separate_last_layers=0,
        final_norm=config.vision.final_norm or _lacks_norm(config.vision),
    )
    if isinstance(config, VisionEncoderConfig):
        return dataclasses.replace(config, vision=vision)
    return dataclasses.replace(
        config, vision=vision, decoder=one_stack(config.decoder), lora=LoRAConfig()
    )


def export_params(params: Params, config: ModelConfig) -> Params:
    """The parameters for `export_config(config)`: low-rank updates are merged into their kernels; a norm that is missing is of ones and
    zeros.

    Hidden states, which is what a connector reads, do not depend on that norm.
    """
    if isinstance(config, VLMConfig):
        # Before stacks are joined: some may have updates, and others none.
        given = params
        params = {path: value for path, value in given.items() if not is_lora(path)}
        for path, update in given.items():
            if path.endswith("/lora_a"):
                module = path.removesuffix("/lora_a")
                kernel, other = f"{module}/kernel", given[f"{module}/lora_b"]
                params[kernel] = merged_kernel(given[kernel], update, other, config.lora.alpha)
    if not isinstance(config, VisionEncoderConfig):
        params = join(params, "decoder", config.decoder.layer_ranges)
    if isinstance(config, LanguageModelConfig):
        return params
    params = join(params, "vision", config.vision.layer_ranges)
    if _lacks_norm(config.vision):
        width = config.vision.width
        params = params | {
            "vision/final_norm/scale": jnp.ones(width),
            "vision/final_norm/bias": jnp.zeros(width),
        }
    return params


def _lacks_norm(vision: ViTConfig) -> bool:
    return vision.norm == "layer" and not vision.final_norm
