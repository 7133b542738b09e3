"""What stands between encoder and decoder: Chain-of-Sight's resampler (arXiv:2407.15819), a linear map, or LLaVA-1.5's MLP."""

from typing import Any

import torch
from torch import Tensor, nn

from torch_baseline.vision import Attention, Mlp, norm


class ImageBoundaryTokens(nn.Module):
    """A learned vector before and one behind the visual tokens of an image."""

    def __init__(self, width: int):
        super().__init__()
        self.start, self.end = (nn.Parameter(torch.randn(width) * width**-0.5) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        first, last = (vector.expand(tokens.shape[0], 1, -1) for vector in (self.start, self.end))
        return torch.cat([first, tokens, last], dim=1)


class ResamplerBlock(Attention):
    """Queries read the patches of their window in one feature layer, then an MLP."""

    def __init__(self, c: dict[str, Any]):
        bias, width = c["norm"] == "layer", c["width"]
        super().__init__(width, width // c["head_dim"], bias=False, output_bias=bias)
        self.norm_query, self.norm_features, self.norm_mlp = (
            norm(c["norm"], width, c["norm_epsilon"]) for _ in range(3)
        )
        self.mlp = Mlp(width, c["mlp_width"], c["activation"], bias)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        q = q + super().forward(self.norm_query(q), self.norm_features(x))
        return q + self.mlp(self.norm_mlp(q))


class Scale(nn.Module):
    """One window size: learned queries, window by window, and a block for every feature layer."""

    def __init__(self, c: dict[str, Any], window: int, queries: int):
        super().__init__()
        self.window, self.queries = window, nn.Parameter(0.02 * torch.randn(queries, c["width"]))
        self.blocks = nn.ModuleList(ResamplerBlock(c) for _ in c["feature_layers"])

    def forward(self, features: list[Tensor]) -> Tensor:
        n, patches, width = features[0].shape
        w = self.window
        g = int(patches**0.5) // w
        q = self.queries.expand(n, -1, -1).reshape(n * g * g, -1, width)
        for block, x in zip(self.blocks, features):  # noqa: B905 - one for each
            q = block(
                q, x.reshape(n, g, w, g, w, width).transpose(2, 3).reshape(n * g * g, w * w, width)
            )
        return q.reshape(n, -1, width)


class Resampler(nn.Module):
    def __init__(self, c: dict[str, Any], output: int):
        super().__init__()
        self.scales = nn.ModuleList(
            Scale(c, window, queries)
            for window, queries in zip(c["windows"], c["queries"])  # noqa: B905 - as many
        )
        self.norm = norm(c["norm"], c["width"], c["norm_epsilon"])
        self.projection = nn.Linear(c["width"], output)
        self.image_boundary_tokens = (
            ImageBoundaryTokens(output) if c["image_boundary_tokens"] else nn.Identity()
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.image_boundary_tokens(
            self.projection(self.norm(torch.cat([scale(features) for scale in self.scales], dim=1)))
        )


class LinearConnector(nn.Module):
    def __init__(self, width: int, output: int):
        super().__init__()
        self.projection = nn.Linear(width, output)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.projection(features[-1])


class MlpConnector(Mlp):
    def __init__(self, c: dict[str, Any], width: int, output: int):
        super().__init__(width, c["hidden_width"], c["activation"], output=output)
        self.image_boundary_tokens = (
            ImageBoundaryTokens(output) if c["image_boundary_tokens"] else nn.Identity()
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.image_boundary_tokens(super().forward(features[-1]))


def make_connector(c: dict[str, Any], width: int, output: int) -> nn.Module:
    """From features of `width` to the decoder's width `output`. Raises ValueError for a kind that this side has not."""
    match c["kind"]:
        case "resampler":
            return Resampler(c, output)
        case "mlp":
            return MlpConnector(c, width, output)
        case "linear":
            return LinearConnector(width, output)
    raise ValueError(f"PyTorch's side has no connector of kind {c['kind']!r}")
