"""Low-rank updates beside linear maps (arXiv:2106.09685), computed in the order in which peft does."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """base(x) + scale * b(a(x))"""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        place = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base, self.scale = base, alpha / rank
        self.lora_a = nn.Linear(base.in_features, rank, bias=False, **place)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False, **place)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_b(self.lora_a(x))


@torch.no_grad()
def attach(model: nn.Module, names: Iterable[str], rank: int, alpha: float) -> None:
    """Puts an update beside the linear maps of these names."""
    for name in names:
        parent, _, own = name.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, own, LoraLinear(getattr(holder, own), rank, alpha))
