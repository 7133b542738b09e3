"""Small models of several families, and checkpoints of a given size."""

import json
import pathlib

import jax
import numpy as np

from mmjax.models import parameters
from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    ModelConfig,
    VisionEncoderConfig,
    ViTConfig,
    VLMConfig,
)
from mmjax.models.connectors.linear import LinearConfig
from mmjax.weights.safetensors_writing import write_safetensors
from mmjax.weights.save import save_params
from mmjax.weights.tensors import TensorInfo

LLAMA = DecoderConfig(
    vocabulary=48, width=32, layers=3, heads=8, kv_heads=4, head_dim=8, mlp_width=64
)
MIXTRAL = DecoderConfig(
    vocabulary=48, width=32, layers=2, heads=8, kv_heads=4, head_dim=8, mlp_width=48, experts=4
)
SIGLIP = ViTConfig(
    image_size=16,
    patch_size=4,
    width=32,
    layers=2,
    heads=4,
    mlp_width=64,
    activation="gelu_tanh",
    class_token=False,
    embedding_norm=False,
    patch_bias=True,
    final_norm=True,
    pooling_head=True,
)
CONFIGS: dict[str, ModelConfig] = {
    "llama": LanguageModelConfig(LLAMA, compute_dtype="float32"),
    "mixtral": LanguageModelConfig(MIXTRAL, compute_dtype="float32"),
    "siglip": VisionEncoderConfig(SIGLIP, compute_dtype="float32"),
    "vlm": VLMConfig(SIGLIP, LinearConfig("linear", (1,)), LLAMA, compute_dtype="float32"),
}


def params_of(config: ModelConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Random numbers, in norms and biases too."""
    random = np.random.default_rng(seed)
    shapes = parameters.abstract(config)[1]
    return {
        path: jax.numpy.asarray(random.standard_normal(shape.shape, np.float32))
        for path, shape in shapes.items()
    }


def saved(name: str, folder: pathlib.Path) -> pathlib.Path:
    """A model as a folder of transformers."""
    save_params(params_of(CONFIGS[name]), CONFIGS[name], folder)
    return folder


def write_llama(
    folder: pathlib.Path,
    *,
    width: int,
    mlp: int,
    layers: int,
    vocabulary: int,
    heads: int = 8,
    kv_heads: int = 2,
) -> int:
    """A Llama of any size in float32, one tensor in memory at a time. Returns the bytes of its largest tensor."""
    kv = width // heads * kv_heads
    shapes = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        own = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (mlp, width),
            "mlp.up_proj": (mlp, width),
            "mlp.down_proj": (width, mlp),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    float32 = np.dtype(np.float32)
    tensors = [(name, TensorInfo(shape, float32), _maker(shape)) for name, shape in shapes.items()]
    write_safetensors(folder, tensors)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
    }
    settings |= {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "model_type": "llama",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return max(info.nbytes for _, info, _ in tensors)


def _maker(shape: tuple[int, ...]):
    """Numbers that differ along every axis, quickly made."""
    rows = np.arange(np.prod(shape[1:], dtype=int), dtype=np.float32) * 1e-6
    return lambda: (
        np.arange(shape[0], dtype=np.float32).reshape(-1, *(1,) * (len(shape) - 1)) * 1e-3
        + rows.reshape(shape[1:])
    )
