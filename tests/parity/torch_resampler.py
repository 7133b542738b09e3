"""The Chain-of-Sight resampler (arXiv:2407.15819, section 3) in plain PyTorch, for reading: a loop over windows, no reshaping tricks."""

import math

import torch
from torch import nn


class Level(nn.Module):
    """One feature level of one scale: queries read the patches of their window, then pass an MLP."""

    def __init__(self, width: int, head_dim: int, mlp_width: int):
        super().__init__()
        self.head_dim = head_dim
        self.norm_query, self.norm_features, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """queries [t, D], patches [S, D], of one window of one image."""
        features = self.norm_features(patches)
        q, k, v = self.query(self.norm_query(queries)), self.key(features), self.value(features)
        heads = []
        for first in range(0, q.shape[-1], self.head_dim):
            head = slice(first, first + self.head_dim)
            scores = q[:, head] @ k[:, head].T / math.sqrt(self.head_dim)
            heads.append(torch.softmax(scores, dim=-1) @ v[:, head])
        queries = queries + self.output(torch.cat(heads, dim=-1))
        return queries + self.down(nn.functional.gelu(self.up(self.norm_mlp(queries))))


class Scale(nn.Module):
    """One window size."""

    def __init__(
        self, window: int, queries: int, levels: int, width: int, head_dim: int, mlp_width: int
    ):
        super().__init__()
        self.window = window
        self.queries = nn.Parameter(torch.zeros(queries, width))
        self.blocks = nn.ModuleList(Level(width, head_dim, mlp_width) for _ in range(levels))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """features: one [grid, grid, D] per level, of one image."""
        side = features[0].shape[0] // self.window
        per_window = len(self.queries) // side**2
        tokens = []
        for row in range(side):
            for column in range(side):
                index = row * side + column
                queries = self.queries[index * per_window : (index + 1) * per_window]
                for level, image in zip(self.blocks, features, strict=False):
                    rows = slice(row * self.window, (row + 1) * self.window)
                    columns = slice(column * self.window, (column + 1) * self.window)
                    queries = level(queries, image[rows, columns].flatten(0, 1))
                tokens.append(queries)
        return torch.cat(tokens)


class Resampler(nn.Module):
    """All scales, coarse to fine, then one norm and one projection."""

    def __init__(
        self,
        windows: list[int],
        queries: list[int],
        levels: int,
        width: int,
        head_dim: int,
        mlp_width: int,
        output_width: int,
    ):
        super().__init__()
        self.scales = nn.ModuleList(
            Scale(w, n, levels, width, head_dim, mlp_width)
            for w, n in zip(windows, queries, strict=False)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, output_width)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """features: one [B, P, D] per level; returns [B, L, output_width]."""
        grid = math.isqrt(features[0].shape[1])
        images = [
            [level[index].unflatten(0, (grid, grid)) for level in features]
            for index in range(len(features[0]))
        ]
        tokens = torch.stack(
            [torch.cat([scale(image) for scale in self.scales]) for image in images]
        )
        return self.projection(self.norm(tokens))
