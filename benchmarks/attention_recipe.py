"""Shapes of attention in a recipe, read from the recipe and from rows that it packs; and two longer ones."""

import numpy as np
from attention_cases import Case, packed

from mmjax.config.load import load
from mmjax.data.loader import batches
from mmjax.data.packing.rows import make_rows
from mmjax.data.text.vocabulary import fit, make_tokenizer
from mmjax.recipe.recipe import Stage
from mmjax.typing import Batch

ITEMSIZE = 4  # float32, in which the default recipe computes
LONG = 2048


def cases(config: str) -> list[Case]:
    """Encoder, connector and decoder of every stage; then 2048 tokens of the last decoder, causal and packed.

    Raises:
        ValueError: the recipe does not compute in float32.
    """
    found = []
    recipe = load(config)
    tokenizer = make_tokenizer(recipe)
    recipe = fit(recipe, tokenizer)
    for stage_name, stage in recipe.stages.items():
        if stage.model.compute_dtype != "float32":
            raise ValueError(
                f"stages must compute in float32, which is measured on a CPU; {stage_name!r} computes in {stage.model.compute_dtype}"
            )
        rows = make_rows(stage.data, stage.model, tokenizer, recipe.seed)
        iterator = batches(rows, stage.batch_size, first_row=0, workers=0)
        found += stage_cases(stage_name, stage, next(iterator)[0])
        iterator.close()
    decoder = stage.model.decoder
    long = {
        "batch": 1,
        "heads": decoder.heads,
        "kv_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "itemsize": ITEMSIZE,
    }
    title = "8 documents of 256 with an image of 64"
    return [
        *found,
        Case(f"causal-{LONG}", f"1 x {LONG}, causal", rows=LONG, keys=LONG, form="causal", **long),
        packed(f"packed-{LONG}", title, 8, LONG // 8, LONG // 32, **long),
    ]


def stage_cases(name: str, stage: Stage, batch: Batch) -> list[Case]:
    """The attention of one step on a batch. Attention of the connector is that which it counts FLOPs of."""
    vision, connector, decoder = stage.model.vision, stage.model.connector, stage.model.decoder
    images = stage.batch_size * stage.data.images_per_row
    tokens = vision.patches + vision.class_token
    found = [
        Case(
            f"{name}-encoder",
            f"encoder, {images} x {tokens}, full",
            images,
            tokens,
            tokens,
            heads=vision.heads,
            kv_heads=vision.heads,
            head_dim=vision.width // vision.heads,
            itemsize=ITEMSIZE,
        )
    ]
    calls = AttentionCalls()
    connector.count_flops(calls, vision, images=1, needs_gradient=False)
    for queries, keys, width in dict.fromkeys(calls.found):
        (heads,) = connector.head_counts().values()
        windows = vision.patches // keys  # each patch is read in one of them
        found.append(
            Case(
                f"{name}-window-{round(keys**0.5)}",
                f"{connector.kind}, {images} x {windows} windows, {queries // windows} to {keys}",
                images * windows,
                queries // windows,
                keys,
                heads=heads,
                kv_heads=heads,
                head_dim=width // heads,
                itemsize=ITEMSIZE,
            )
        )
    segments = np.asarray(batch.segment_ids)
    rows, length = segments.shape
    found.append(
        Case(
            f"{name}-decoder",
            f"decoder, {rows} packed rows of {length}",
            rows,
            length,
            length,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            form="segments",
            segments=segments,
            prefixes=np.asarray(batch.prefix_segment_ids),
            itemsize=ITEMSIZE,
        )
    )
    return found


class AttentionCalls:
    """Notes which attention a connector computes, where others count its FLOPs (`mmjax.models.connectors.base.FlopCounter`)."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int, int]] = []  # queries, keys, width

    def trains(self, path: str) -> bool:
        return False

    def linear(self, path: str, rows: int, needs_gradient: bool) -> bool:
        return False

    def attention(
        self, queries: int, keys: int, width: int, needs_gradient: tuple[bool, bool, bool]
    ) -> bool:
        self.found.append((queries, keys, width))
        return False
