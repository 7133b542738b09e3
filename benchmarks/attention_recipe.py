"""Shapes of attention in a recipe, read from the recipe and from rows that it packs; and two longer ones."""

import pathlib
import tempfile

import numpy as np
from attention_cases import Case, packed

from mmjax.config.load import load
from mmjax.data.loader import batches
from mmjax.data.packing.rows import make_rows
from mmjax.recipe.recipe import Stage
from mmjax.runs.saved import prepare_tokenizer

ITEMSIZE = 4  # float32, in which the default recipe computes
LONG = 2048


def cases(config: str) -> list[Case]:
    """SegmentTokenizer, resampler and decoder of every stage; then 2048 tokens of the last decoder, causal and packed.

    Raises:
        ValueError: the recipe does not compute in float32.
    """
    found = []
    with tempfile.TemporaryDirectory() as name:
        tokenizer, recipe = prepare_tokenizer(load(config), pathlib.Path(name))
        for stage_name, stage in recipe.stages.items():
            if stage.model.compute_dtype != "float32":
                raise ValueError(
                    f"on a CPU float32 is measured, and the stage {stage_name!r} computes in {stage.model.compute_dtype}"
                )
            found += [*_encoder(stage_name, stage), *_resampler(stage_name, stage)]
            iterator = batches(
                make_rows(stage.data, stage.model, tokenizer, recipe.seed),
                stage.batch_size,
                first_row=0,
                workers=0,
            )
            batch, *_ = next(iterator)
            iterator.close()
            found.append(
                _decoder(
                    stage_name,
                    stage,
                    np.asarray(batch.segment_ids),
                    np.asarray(batch.prefix_segment_ids),
                )
            )
    heads = {
        "heads": stage.model.decoder.heads,
        "kv_heads": stage.model.decoder.kv_heads,
        "head_dim": stage.model.decoder.head_dim,
    }
    long = {"batch": 1, "itemsize": ITEMSIZE, **heads}
    found.append(
        Case(f"causal-{LONG}", f"1 x {LONG}, causal", rows=LONG, keys=LONG, form="causal", **long)
    )
    found.append(
        packed(
            f"packed-{LONG}",
            "8 documents of 256 with an image of 64",
            8,
            LONG // 8,
            LONG // 32,
            **long,
        )
    )
    return found


def _encoder(name: str, stage: Stage) -> list[Case]:
    vision, images = stage.model.vision, stage.batch_size * stage.data.images_per_row
    tokens = vision.patches + vision.class_token
    shape = {
        "heads": vision.heads,
        "kv_heads": vision.heads,
        "head_dim": vision.width // vision.heads,
        "itemsize": ITEMSIZE,
    }
    return [
        Case(
            f"{name}-encoder",
            f"encoder, {images} x {tokens}, full",
            images,
            tokens,
            tokens,
            **shape,
        )
    ]


def _resampler(name: str, stage: Stage) -> list[Case]:
    connector, images = stage.model.connector, stage.batch_size * stage.data.images_per_row
    if connector.kind != "resampler":
        return []
    heads = connector.width // connector.head_dim
    found = []
    for window, queries in zip(connector.windows, connector.queries, strict=True):
        windows = (stage.model.vision.grid // window) ** 2
        title = f"resampler, {images} x {windows} windows, {queries // windows} to {window**2}"
        shape = {
            "heads": heads,
            "kv_heads": heads,
            "head_dim": connector.head_dim,
            "itemsize": ITEMSIZE,
        }
        found.append(
            Case(
                f"{name}-window-{window}",
                title,
                images * windows,
                queries // windows,
                window**2,
                **shape,
            )
        )
    return found


def _decoder(name: str, stage: Stage, segments: np.ndarray, prefixes: np.ndarray) -> Case:
    decoder, (batch, tokens) = stage.model.decoder, segments.shape
    shape = {
        "heads": decoder.heads,
        "kv_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "itemsize": ITEMSIZE,
    }
    title = f"decoder, {batch} packed rows of {tokens}"
    return Case(
        f"{name}-decoder",
        title,
        batch,
        tokens,
        tokens,
        form="segments",
        segments=segments,
        prefixes=prefixes,
        **shape,
    )
