"""How large the tiles of each kernel are, per device and head dimension. Numbers only; nothing here changes a result."""

from typing import NamedTuple


class Tile(NamedTuple):
    """What one block of a kernel works on.

    Attributes:
        rows, keys: of a tile of scores. Of what a block owns, this much belongs to each of its two computing warpgroups (of what it walks
            along, both read the same tile).
        stages: how many tiles are on their way or in use at a time.
        split: the warpgroups share the owned keys and take one product each, instead of owning different keys.
    """

    rows: int
    keys: int
    stages: int
    split: bool = False


class Tiles(NamedTuple):
    """Of the three kernels."""

    forward: Tile
    queries: Tile
    keys: Tile


_HOPPER = {
    64: Tiles(forward=Tile(64, 128, 4), queries=Tile(64, 128, 2), keys=Tile(64, 64, 2)),
    80: Tiles(forward=Tile(64, 128, 3), queries=Tile(64, 64, 2), keys=Tile(64, 64, 2)),
    96: Tiles(forward=Tile(64, 128, 3), queries=Tile(64, 64, 2), keys=Tile(64, 64, 2)),
    128: Tiles(forward=Tile(64, 128, 2), queries=Tile(64, 64, 3), keys=Tile(64, 64, 3)),
    256: Tiles(forward=Tile(64, 64, 2), queries=Tile(64, 32, 2), keys=Tile(64, 64, 2, split=True)),
}

HEAD_DIMENSIONS = tuple(_HOPPER)


def tiles(head_dim: int) -> Tiles:
    return _HOPPER[head_dim]
