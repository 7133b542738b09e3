"""Vision encoders: transformers' CLIP where the model is one, and a plain vision transformer where it is not.

CLIP has a class token, a norm after the embeddings, LayerNorm with biases everywhere but in the patch projection, and nothing else. The
encoder of mmjax's default recipe has RMSNorm, no biases and no class token; DINOv2 has LayerScale and no norm after the embeddings.
"""

import abc
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from torch_baseline.attention import NAME, attend
from torch_baseline.blocks import Ways

# By the names of transformers.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}
FUNCTIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


def norm(kind: str, width: int, epsilon: float) -> nn.Module:
    return nn.LayerNorm(width, eps=epsilon) if kind == "layer" else nn.RMSNorm(width, eps=epsilon)


def is_clip(c: dict[str, Any]) -> bool:
    """Whether transformers' CLIPVisionModel has the form of this encoder."""
    odd = c["patch_bias"] or c["gated_mlp"] or c["layer_scale"] or c["pooling_head"]
    return c["norm"] == "layer" and c["class_token"] and c["embedding_norm"] and not odd


def make_vision(c: dict[str, Any]) -> "Vision":
    """Raises ValueError for what neither form has."""
    if c["gated_mlp"] or c["pooling_head"]:
        raise ValueError(
            "the encoder has a gated MLP or a pooling head, which PyTorch's side of this benchmark has not"
        )
    return Clip(c) if is_clip(c) else PlainVision(c)


class Vision(nn.Module, abc.ABC):
    """What both forms share: pixels to hidden states after chosen blocks."""

    layers: nn.ModuleList
    final_norm: nn.Module | None

    def __init__(self, c: dict[str, Any]):
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(
                name, torch.tensor(c[f"image_{name}"], dtype=torch.float32), persistent=False
            )

    def hidden_states(self, images: Tensor, wanted: list[int], ways: Ways) -> list[Tensor]:
        """[N, h, w, 3] uint8 to states [N, P (+ 1), D] after `wanted` blocks each."""
        x, states = ways.part(self.embed, images), {}
        for count, layer in enumerate(self.layers, 1):
            x = ways.block(layer, x, None) if isinstance(self, Clip) else ways.block(layer, x)
            states[count] = x = x[0] if isinstance(x, tuple) else x
        return [states[count] for count in wanted]

    def normalised(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std

    @abc.abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Pixels to what the first block reads."""


class Clip(Vision):
    """The modules of CLIPVisionModel. Its last norm is kept where the connector reads through it."""

    def __init__(self, c: dict[str, Any]):
        super().__init__(c)
        config = CLIPVisionConfig(
            hidden_size=c["width"],
            intermediate_size=c["mlp_width"],
            num_hidden_layers=c["layers"],
            num_attention_heads=c["heads"],
            image_size=c["image_size"],
            patch_size=c["patch_size"],
            hidden_act=ACTIVATIONS[c["activation"]],
            layer_norm_eps=c["norm_epsilon"],
            attn_implementation=NAME,
        )
        model = CLIPVisionModel(config)
        model = getattr(model, "vision_model", model)  # where releases differ
        self.embeddings, self.embedding_norm, self.layers = (
            model.embeddings,
            model.pre_layrnorm,
            model.encoder.layers,
        )
        self.final_norm = model.post_layernorm if c["final_norm"] else None

    def embed(self, images: Tensor) -> Tensor:
        return self.embedding_norm(self.embeddings(self.normalised(images).permute(0, 3, 1, 2)))


class Attention(nn.Module):
    """The four projections around `attend`; no positions."""

    is_causal = False

    def __init__(self, width: int, heads: int, bias: bool, output_bias: bool):
        super().__init__()
        self.head_dim = width // heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.output = nn.Linear(width, width, bias=output_bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (
            z.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for z in (self.query(x), self.key(y), self.value(y))
        )
        return self.output(attend(self, q, k, v, None)[0].flatten(2))


class Mlp(nn.Module):
    def __init__(
        self, width: int, hidden: int, activation: str, bias: bool = True, output: int | None = None
    ):
        super().__init__()
        self.up, self.down = (
            nn.Linear(width, hidden, bias=bias),
            nn.Linear(hidden, output or width, bias=bias),
        )
        self.activation = FUNCTIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class PlainBlock(nn.Module):
    def __init__(self, c: dict[str, Any]):
        super().__init__()
        bias = c["norm"] == "layer"
        self.norm_attention, self.norm_mlp = (
            norm(c["norm"], c["width"], c["norm_epsilon"]) for _ in range(2)
        )
        self.attention = Attention(c["width"], c["heads"], bias, bias)
        self.mlp = Mlp(c["width"], c["mlp_width"], c["activation"], bias)
        self.scaled = c["layer_scale"]
        if self.scaled:
            self.scale_attention, self.scale_mlp = (
                nn.Parameter(torch.ones(c["width"])) for _ in range(2)
            )

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm_attention(x)
        mixed = self.attention(z, z)
        x = x + (mixed * self.scale_attention if self.scaled else mixed)
        mapped = self.mlp(self.norm_mlp(x))
        return x + (mapped * self.scale_mlp if self.scaled else mapped)


class PlainVision(Vision):
    """A pre-norm vision transformer with what CLIP has not."""

    def __init__(self, c: dict[str, Any]):
        super().__init__(c)
        self.patch_size, self.grid = c["patch_size"], c["image_size"] // c["patch_size"]
        self.patch = nn.Linear(self.patch_size**2 * 3, c["width"], bias=c["patch_bias"])
        self.position = nn.Parameter(
            0.02 * torch.randn(self.grid**2 + c["class_token"], c["width"])
        )
        self.class_token = (
            nn.Parameter(0.02 * torch.randn(c["width"])) if c["class_token"] else None
        )
        self.embedding_norm = (
            norm(c["norm"], c["width"], c["norm_epsilon"]) if c["embedding_norm"] else None
        )
        self.layers = nn.ModuleList(PlainBlock(c) for _ in range(c["layers"]))
        self.final_norm = (
            norm(c["norm"], c["width"], c["norm_epsilon"]) if c["final_norm"] else None
        )

    def embed(self, images: Tensor) -> Tensor:
        n, g, p = images.shape[0], self.grid, self.patch_size
        pixels = self.normalised(images)[:, : g * p, : g * p].to(self.position.dtype)
        x = self.patch(
            pixels.reshape(n, g, p, g, p, 3).transpose(2, 3).reshape(n, g * g, p * p * 3)
        )
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(n, 1, -1), x], dim=1)
        x = x + self.position
        return x if self.embedding_norm is None else self.embedding_norm(x)
