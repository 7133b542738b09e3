"""The devices that a recipe is planned for. It imports no jax, so that a wrong --topology is refused at once."""

import dataclasses
import math

from mmjax.errors import InputError
from mmjax.recipe.schema import choose, suggestion


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator: bytes of memory, and dense bfloat16 FLOP/s (vendors' data sheets)."""

    memory: float
    flops: float


DEVICES = {
    "a100": Device(80e9, 312e12),
    "h100": Device(80e9, 989e12),
    "h200": Device(141e9, 989e12),
    "v5e": Device(16 * 2**30, 197e12),
    "v5p": Device(95 * 2**30, 459e12),
    "v6e": Device(32 * 2**30, 918e12),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some number of equal devices."""

    name: str
    device: Device
    count: int

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Reads "h100:8" or "v5p:4x4x4". Raises InputError for anything else."""
        kind, _, shape = text.partition(":")
        form = "--topology must be an accelerator, a colon and a number of devices, such as h100:8 or v5p:4x4x4"
        if ":" not in text:
            raise InputError(f"{form}; it is {text}. {suggestion(kind, DEVICES)}")
        device = choose(kind.lower(), DEVICES, "accelerator")
        sides = shape.split("x")
        if not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise InputError(f"{form}; it is {text}.")
        return cls(text, device, math.prod(map(int, sides)))
