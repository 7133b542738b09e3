"""The devices that a recipe is planned for. It imports no jax, so that a wrong --topology is refused at once."""

import dataclasses
import math

from mmjax.base.devices import DEVICES, Device, plain_name
from mmjax.errors import InputError
from mmjax.recipe.schema import choose, suggestion


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some number of equal devices."""

    name: str
    device: Device
    count: int

    @property
    def hardware(self) -> str:
        """In words: "8 x h100"."""
        return f"{self.count} x {self.name.partition(':')[0]}"

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Reads "h100:8" or "v5p:4x4x4"; the names are those of `DEVICES`. Raises InputError for anything else."""
        kind, _, shape = text.partition(":")
        form = "--topology must be an accelerator, a colon and a number of devices, such as h100:8 or v5p:4x4x4"
        if ":" not in text:
            raise InputError(f"{form}; it is {text}. {suggestion(kind, DEVICES)}")
        device = choose(plain_name(kind), DEVICES, "accelerator")
        sides = shape.split("x")
        if not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise InputError(f"{form}; it is {text}.")
        return cls(text, device, math.prod(map(int, sides)))
