"""How large the tiles of each kernel are, per device and head dimension. Numbers only; nothing here changes a result."""

from typing import NamedTuple


class Tile(NamedTuple):
    """What one block of a kernel works on.

    Attributes:
        rows, keys: of a tile of scores. Of what a block owns, this much belongs to each of its two computing warpgroups (of what it walks
            along, both read the same tile).
        stages: how many tiles are on their way or in use at a time.
        apart: see `block.Block`.
        split: the warpgroups share the owned keys and take one product each, instead of owning different keys.
    """

    rows: int
    keys: int
    stages: int
    split: bool = False
    apart: bool = False


class Tiles(NamedTuple):
    """Of the kernels. fused: None where registers do not suffice for that one, and the other two are used in its place."""

    forward: Tile
    queries: Tile
    keys: Tile
    fused: Tile | None


# Of forward, queries, keys, fused.
_HOPPER = {
    (64, False): Tiles(Tile(64, 256, 2), Tile(64, 128, 2), Tile(128, 64, 2), Tile(64, 64, 3)),
    (64, True): Tiles(Tile(64, 128, 3), Tile(64, 128, 2), Tile(64, 64, 3), Tile(64, 64, 3)),
    (80, False): Tiles(Tile(64, 128, 3), Tile(64, 64, 3), Tile(64, 64, 3), Tile(64, 64, 2)),
    (96, False): Tiles(Tile(64, 128, 3), Tile(64, 64, 3), Tile(64, 64, 3), Tile(64, 64, 2)),
    (128, False): Tiles(Tile(64, 128, 3), Tile(64, 64, 3), Tile(64, 64, 3), Tile(64, 64, 2)),
    (256, False): Tiles(
        Tile(64, 64, 2), Tile(64, 32, 2, apart=True), Tile(64, 64, 2, split=True), None
    ),
}
"""By head dimension, and whether there is a mask; where the second line is missing, the first holds for both.

Where they start from: what was measured to be fastest on an H100 for kernels of the same structure (autotuning data of tokamax 0.0.17),
changed where the compiler for the H200 had to spill registers.
"""

HEAD_DIMENSIONS = tuple(sorted({head_dim for head_dim, _ in _HOPPER}))


def tiles(head_dim: int, *, masked: bool) -> Tiles:
    return _HOPPER.get((head_dim, masked)) or _HOPPER[head_dim, False]
