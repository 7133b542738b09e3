"""Batches of the step-time benchmark: seeded random ones, packed and padded ones, and those of the default recipe."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from synthetic import FIRST_TOKEN, make_batch

from mmjax.recipe.recipe import Stage
from mmjax.typing import NO_IMAGE, NO_TARGET, Batch

Pair = tuple[Batch, Batch]
"""Of mmjax and of PyTorch."""

MOST_DRAWS = 1000


def maker(name: str, stage: Stage) -> Callable[[int], list[Pair]]:
    """(count) -> batches of a stage."""
    if name == "packed":
        return lambda count: [packed_and_padded(stage, seed) for seed in range(count)]
    return lambda count: [
        (batch, batch) for batch in (make_batch(stage, seed) for seed in range(count))
    ]


def packed_and_padded(stage: Stage, seed: int) -> Pair:
    """The same texts twice: packed into the rows of the stage, and one a row, padded on the right to the longest of all batches."""
    rng = np.random.default_rng(seed)
    row, rows = stage.data.text_length, stage.batch_size
    longest = row // 4
    packed = pack(rng, rows, row, longest)
    samples = [
        rng.integers(FIRST_TOKEN, stage.model.decoder.vocabulary, length).astype(np.int32)
        for lengths in packed
        for length in lengths
    ]
    given = iter(samples)
    pixels = stage.model.vision.image_size
    return text_rows(
        [[next(given) for _ in lengths] for lengths in packed], row, pixels
    ), text_rows([[x] for x in samples], longest, pixels)


def samples_per_batch(rows: int, row: int) -> int:
    """Of `packed_and_padded`: the same for every seed, so that both sides compile once."""
    return rows * row * 2 // (row // 4)


def pack(rng: np.random.Generator, rows: int, row: int, longest: int) -> list[list[int]]:
    """Lengths of samples by row, the longest first: log-normal around a third of the longest and cut at it; one is as long as that.

    There are `samples_per_batch` of them; draws that do not fit into the rows are drawn again. Raises ValueError if none ever fits.
    """
    count = samples_per_batch(rows, row)
    shortest = max(longest // 16, 2)
    for _ in range(MOST_DRAWS):
        drawn = np.clip(
            np.exp(rng.normal(np.log(longest / 3), 0.7, count)).astype(int), shortest, longest
        )
        drawn[0] = longest
        packed: list[list[int]] = [[] for _ in range(rows)]
        for length in sorted(map(int, drawn), reverse=True):
            fitting = next((lengths for lengths in packed if sum(lengths) + length <= row), None)
            if fitting is None:
                break
            fitting.append(length)
        else:
            return packed
    raise ValueError(f"samples of up to {longest} tokens do not fit into {rows} rows of {row}")


def text_rows(rows: list[list[np.ndarray]], length: int, pixels: int) -> Batch:
    """Texts one behind the other as segments of rows, padded to `length`."""
    shape = (len(rows), length)
    tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
    targets = np.full(shape, NO_TARGET, np.int32)
    for number, texts in enumerate(rows):
        begin = 0
        for segment, text in enumerate(texts, 1):
            end = begin + len(text)
            tokens[number, begin:end], segments[number, begin:end], positions[number, begin:end] = (
                text,
                segment,
                np.arange(len(text)),
            )
            targets[number, begin : end - 1] = text[1:]
            begin = end
    return Batch(
        tokens=tokens,
        targets=targets,
        segment_ids=segments,
        prefix_segment_ids=np.zeros(shape, np.int32),
        positions=positions,
        images=np.zeros((len(rows), 0, pixels, pixels, 3), np.uint8),
        image_mask=np.zeros((len(rows), 0), bool),
        visual_embedding_index=np.full(shape, NO_IMAGE, np.int32),
    )


def default_recipe(
    stage_name: str, config: str = "configs/cos.py"
) -> tuple[Stage, Callable[[int], list[Pair]]]:
    """A stage of a config file, at a constant rate, and its batches, packed from its data."""
    from mmjax.config.load import load
    from mmjax.data.loader import batches
    from mmjax.data.packing.rows import make_rows
    from mmjax.data.text.vocabulary import fit, make_tokenizer

    recipe = load(str(pathlib.Path(__file__).parents[1] / config))
    tokenizer = make_tokenizer(recipe)
    recipe = fit(recipe, tokenizer)
    stage = recipe.stages[stage_name]
    stage = dataclasses.replace(
        stage, optimizer=dataclasses.replace(stage.optimizer, schedule="constant", warmup_steps=0)
    )

    def taken(count: int) -> list[Pair]:
        iterator = batches(
            make_rows(stage.data, stage.model, tokenizer, recipe.seed),
            stage.batch_size,
            first_row=0,
            workers=0,
        )
        found = [next(iterator)[0] for _ in range(count)]
        iterator.close()
        return [(batch, batch) for batch in found]

    return stage, taken


def samples(batch: Batch) -> int:
    """Segments with a target: what a person would call a caption, a question or a text."""
    supervised = np.asarray(batch.targets) != NO_TARGET
    return sum(
        len(np.unique(np.asarray(batch.segment_ids)[row][supervised[row]]))
        for row in range(len(supervised))
    )


def padding(batch: Batch) -> float:
    """Share of the tokens of a batch."""
    return float((np.asarray(batch.segment_ids) == 0).mean())
