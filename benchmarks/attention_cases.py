"""What the attention benchmark computes: shapes, scores that a mask shows, useful FLOPs, least bytes and seconds, what must be reached.

Nothing here needs jax, torch or mmjax, and Python 3.11 is enough: the worker with PyTorch imports it too.
"""

import dataclasses
import functools

import numpy as np

PEAK_FLOPS, PEAK_BYTES = 790e12, 4.3e12
"""Per second: a bfloat16 matrix product and a copy (bytes read and written), as measured on one H200."""

PASSES = {"forward": 1.0, "backward": 2.5, "gradient": 3.5}
"""Matrix products relative to the forward pass: 2; 5 (the scores again, dv, the gradient of the weights, dq, dk); both in one program."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape: queries [batch, rows, heads, head_dim], keys and values [batch, keys, kv_heads, head_dim].

    Attributes:
        form: "full", "causal", or "segments": what the arrays below say, as in `mmjax.typing.Batch`.
        segments: [b, T], 1, 2, ... then 0 for padding; b is `batch`, or 1 where all rows of the batch are alike.
        prefixes: [b, T], the segment whose every key a row sees, too; 0: none.
        blocks: [b, T], neighbours with the same number, not 0, see each other in both directions.
        must: {direction: TFLOP/s to reach}.
        must_dense: {direction: how many times as fast as the fastest opponent that computes all scores}.
    """

    name: str
    title: str
    batch: int
    rows: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    form: str = "full"
    segments: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    prefixes: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    blocks: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    must: dict = dataclasses.field(default_factory=dict, compare=False)
    must_dense: dict = dataclasses.field(default_factory=dict, compare=False)
    itemsize: int = 2

    @functools.cached_property
    def seen(self) -> float:
        """Scores that the mask shows, summed over the batch, for one head; a row's own key counts half, so that causal counts half."""
        if self.form == "full":
            return float(self.batch * self.rows * self.keys)
        if self.form == "causal":
            return self.batch * self.rows * self.keys / 2
        mask = self.dense()
        return (mask.sum() - np.diagonal(mask, axis1=1, axis2=2).sum() / 2) * self.batch / len(mask)

    def dense(self) -> np.ndarray:
        """[b, T, S] bool, written down from the definition: which keys a row sees. b as for `segments`."""
        if self.form == "full":
            return np.ones((1, self.rows, self.keys), bool)
        causal = np.tri(self.rows, self.keys, self.keys - self.rows, dtype=bool)[None]
        if self.form == "causal":
            return causal
        assert self.segments is not None, self.name
        mask = causal if self.blocks is None else causal | _equal(self.blocks, self.blocks)
        mask = mask & _equal(self.segments, self.segments)
        return mask if self.prefixes is None else mask | _equal(self.prefixes, self.segments)

    def sees_something(self) -> np.ndarray:
        """[b, T] bool: which rows see any key."""
        return self.dense().any(axis=2)

    def flops(self, direction: str) -> float:
        """Useful ones: two products of `head_dim` for each score that is seen, forward."""
        return 4.0 * self.seen * self.heads * self.head_dim * PASSES[direction]

    def bytes(self, direction: str) -> int:
        """The fewest to move: every array once, and the logarithm of the sum of every row in float32."""
        # Also out, dout and dq.
        queries = self.batch * self.rows * self.heads * self.head_dim * self.itemsize
        # Also values, dk and dv.
        keys = self.batch * self.keys * self.kv_heads * self.head_dim * self.itemsize
        sums = self.batch * self.rows * self.heads * 4
        forward, backward = 2 * queries + 2 * keys + sums, 4 * queries + 4 * keys + sums
        return {"forward": forward, "backward": backward, "gradient": forward + backward}[direction]

    def least_seconds(
        self, direction: str, flops: float = PEAK_FLOPS, bandwidth: float = PEAK_BYTES
    ) -> float:
        """Seconds that no implementation can beat on hardware of so many FLOPs and bytes per second."""
        return max(self.flops(direction) / flops, self.bytes(direction) / bandwidth)


def _equal(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return (rows[:, :, None] == keys[:, None, :]) & (rows[:, :, None] != 0)


def packed(name: str, title: str, documents: int, length: int, prefix: int, **shape) -> Case:
    """Causal documents of one length behind each other, each beginning with an image that sees itself in both directions."""
    number = np.repeat(np.arange(1, documents + 1, dtype=np.int32), length)[None]
    image = np.where(np.arange(documents * length)[None] % length < prefix, number, 0)
    rows = documents * length
    return Case(
        name, title, rows=rows, keys=rows, form="segments", segments=number, blocks=image, **shape
    )


def gpu_cases(shrink: int = 1) -> list[Case]:
    """The shapes to measure on a GPU: CLIP-like encoders, Llama-like decoders, packed documents, gated cross-attention.

    Args:
        shrink: lengths are divided by this, and batches are 1, to try the programme without a GPU.
    """

    vit = {"heads": 16, "kv_heads": 16, "head_dim": 64}
    decoder = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    encoder_must = {"forward": 380, "backward": 290}
    decoder_must = {"forward": 500, "backward": 380}

    def length(value: int) -> int:
        return max(value // shrink, 8)

    def batch(value: int) -> int:
        return value if shrink == 1 else 1

    def case(name: str, title: str, count: int, rows: int, keys: int, **settings) -> Case:
        return Case(name, title, batch(count), length(rows), length(keys), **settings)

    cases = []
    for b, s in ((64, 257), (64, 577), (32, 1297), (8, 4096)):
        must = encoder_must if s > 1000 else {}
        cases.append(case(f"vit-{s}", f"ViT-L, {b} x {s}, full", b, s, s, must=must, **vit))
    for b, s in ((8, 4096), (4, 8192)):
        title, settings = f"decoder, {b} x {s}, causal", {"form": "causal", "must": decoder_must}
        cases.append(case(f"decoder-{s}", title, b, s, s, **settings, **decoder))
    cases.append(
        packed(
            "packed-8192",
            "decoder, 2 x 8 documents of 1024 with an image of 256",
            8,
            length(1024),
            length(256),
            batch=batch(2),
            must_dense={"backward": 3},
            **decoder,
        )
    )
    for s in (64, 320):
        title = f"cross-attention, 8 x 2048 to {s}"
        cases.append(case(f"flamingo-{s}", title, 8, 2048, s, **vit))
    return cases


def gate_cases() -> list[Case]:
    """Small shapes with what makes kernels go wrong: ragged lengths, grouped heads, both intervals of a row, rows that see nothing."""
    random = np.random.default_rng(0)
    ends = np.sort(random.choice(np.arange(1, 700), (2, 4), replace=False), axis=1)
    segments = np.stack(
        [np.searchsorted(row, np.arange(1000), side="right") + 1 for row in ends]
    ).astype(np.int32)
    segments = np.where(np.arange(1000) < 900, segments, 0)  # the rest is padding
    prefixes = np.where(segments > 2, 1, 0)
    few = {"heads": 4, "kv_heads": 4, "head_dim": 64}
    grouped = {"heads": 8, "kv_heads": 2, "head_dim": 128}
    return [
        Case("gate-full", "full, ragged", 2, 257, 257, **few),
        Case("gate-cross", "full, fewer keys", 2, 500, 77, **few),
        Case("gate-causal", "causal, grouped", 1, 1024, 1024, form="causal", **grouped),
        packed("gate-packed", "packed with images", 3, 320, 100, batch=2, **grouped),
        Case(
            "gate-prefixes",
            "two intervals, padding",
            2,
            1000,
            1000,
            form="segments",
            segments=segments,
            prefixes=prefixes,
            **grouped,
        ),
        Case(
            "gate-prefixes-64",
            "two intervals, padding",
            2,
            1000,
            1000,
            form="segments",
            segments=segments,
            prefixes=prefixes,
            **few,
        ),
    ]
