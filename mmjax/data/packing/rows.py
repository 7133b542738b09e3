"""Packed rows by index: any row of the endless stream that a stage trains on, computed on its own from (seed, index).

The order within a pass is a permutation that is never stored: `shuffled` computes the place of any one index.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from grain.experimental import index_shuffle

from mmjax.data.examples import Example, Image, Report, SampleError, Skips, describe, listed
from mmjax.data.images.decode import ImageCache
from mmjax.data.packing.layout import CHANGED, Row, RowShape, RowWriter
from mmjax.data.packing.packing import Mixture, PackingPlan, RowCapacity, make_plan
from mmjax.data.sources.base import Part, Source
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import SegmentTokenizer, Tokenizer
from mmjax.errors import InputError
from mmjax.models.config import VLMConfig
from mmjax.recipe.recipe import DataConfig


def shuffled(index: int, count: int, key: tuple[int, ...]) -> int:
    """Element `index` of a permutation of 0 .. count - 1 that `key` (non-negative integers) selects, in constant memory."""
    assert 0 <= index < count
    return index_shuffle(index, max_index=count - 1, seed=_seed(key), rounds=4)


@lru_cache(maxsize=256)
def _seed(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


# What a random number is drawn for; with the seed and the source's name it makes the key of a stream of its own.
_PACKING, _ORDER, _ROW = range(3)


@dataclass(frozen=True)
class Statistics:
    """What the rows of a source (or of all sources, in the ratio in which they are mixed) hold.

    Attributes:
        rows: in one pass. samples: captions, questions or conversations trained on in one pass.
        fill: the share of a row's T tokens that is not padding; text_fill: of its text_length; image_fill: of its image slots.
        supervised: targets per row.
        skipped: samples that cannot be used, by cause.
        sources: the same for each source.
        skip_examples: the first skipped sample of each cause, and what is wrong with it.
    """

    rows: int
    samples: int
    fill: float
    text_fill: float
    image_fill: float
    supervised: float
    skipped: dict[str, int]
    sources: dict[str, "Statistics"] = field(default_factory=dict)
    skip_examples: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        such_as = f", such as\n{listed(self.skip_examples)}" if self.skip_examples else ""
        return (
            f"{self.rows:,} rows with {self.samples:,} samples in a pass; filled: tokens {self.fill:.0%}, text {self.text_fill:.0%}, "
            f"images {self.image_fill:.0%}; {self.supervised:.1f} supervised tokens per row; skipped: {describe(self.skipped)}{such_as}"
        )


class SourceRows:
    """The rows of one source. Every pass over it has an order of its own; a row keeps its samples, but not their order."""

    def __init__(
        self,
        name: str,
        source: Source,
        segment_tokenizer: SegmentTokenizer,
        shape: RowShape,
        images: ImageCache,
        *,
        seed: int,
        skip_budget: float,
        shuffle: bool,
        flip: bool,
    ):
        """Plans the rows. Sources of a mixture share `images`: more of them need no more memory.

        Raises:
            InputError: as `make_plan` does.
        """
        self.name = name
        self._source = source
        self._segment_tokenizer = segment_tokenizer
        self._shape = shape
        # By name: another source in the config changes nothing here.
        self._key = (seed, zlib.crc32(name.encode()))
        self._shuffle = shuffle
        self._flip = flip
        self._images = images
        order = (*self._key, _PACKING) if shuffle else None
        capacity = RowCapacity(shape.text_length, shape.images_per_row)
        self.plan: PackingPlan = make_plan(
            source, segment_tokenizer, capacity, name=name, seed=order, skip_budget=skip_budget
        )

    def __len__(self) -> int:
        """Rows in one pass."""
        return len(self.plan)

    def load(self, index: int) -> tuple[Row, Report]:
        """Row `index` >= 0, and what was skipped in it."""
        rng = np.random.default_rng((*self._key, _ROW, index))

        def load_image(image: Image) -> np.ndarray:
            # Drawn before the image is read: a corrupt one changes no other.
            mirrored = self._flip and rng.random() < 0.5
            size, resize = self._shape.image_size, self._shape.resize
            pixels = self._images.load(image.source, size, resize=resize)
            return pixels[:, ::-1] if mirrored else pixels

        writer, report = RowWriter(self._shape, load_image), Report()
        for example, continuations in self._units(index, rng):
            report.seen += len(continuations)
            try:
                self._write(writer, self._source[example], continuations, report)
            except SampleError as error:
                report.skip(
                    error.cause, error.detail or f"{self.name}[{example}]", len(continuations)
                )
        return writer.row, report

    def sample_ids(self, index: int) -> list[str]:
        """The ids of the examples in row `index`, in order."""
        ids = []
        for example, _ in self._units(index, np.random.default_rng((*self._key, _ROW, index))):
            try:
                ids.append(self._source[example].id)
            except SampleError:
                ids.append(f"{self.name}[{example}]")
        return ids

    def statistics(self) -> Statistics:
        """What the rows hold."""
        plan, shape, rows = self.plan, self._shape, len(self.plan)
        return Statistics(
            rows=rows,
            samples=len(plan.numbers),
            fill=(plan.text + plan.images * shape.visual_tokens) / (rows * shape.length),
            text_fill=plan.text / (rows * shape.text_length),
            image_fill=plan.images / (rows * shape.images_per_row) if shape.images_per_row else 0.0,
            supervised=plan.supervised / rows,
            skipped=dict(plan.report.causes),
            skip_examples=plan.report.examples,
        )

    def _units(self, index: int, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
        """The units of row `index`: in training, in an order drawn from `rng`, which also orders the continuations of each."""
        epoch, place = divmod(index, len(self))
        if not self._shuffle:
            return self.plan.units(place)
        units = self.plan.units(shuffled(place, len(self), (*self._key, _ORDER, epoch)))
        return [
            (units[place][0], rng.permutation(units[place][1]).tolist())
            for place in rng.permutation(len(units))
        ]

    def _write(
        self, writer: RowWriter, example: Example, continuations: Sequence[int], report: Report
    ) -> None:
        """Writes a unit: the prefix, if there is one, and each continuation as a segment of its own."""
        if max(continuations) >= len(example.continuations):
            raise InputError(f"{example.id} has fewer continuations than planned: {CHANGED}")
        prefix, start, drop_targets = 0, 0, False
        if example.prefix:
            segment = self._segment_tokenizer.prefix(example.prefix)
            prefix, error = writer.write(segment)
            start, drop_targets = len(segment.tokens), error is not None
            if error is not None:
                report.skip(error.cause, f"{example.id}: {error.detail}", len(continuations))
        for number in continuations:
            segment = self._segment_tokenizer.continuation(example.continuations[number])
            _, error = writer.write(segment, prefix=prefix, start=start, drop_targets=drop_targets)
            if error is not None and not drop_targets:
                report.skip(error.cause, f"{example.id}: {error.detail}")


class Rows:
    """All rows of a stage. In training they go on for ever, sources mixed by their weights; held-out rows are one pass over each in turn.

    Nothing is drawn in sequence: rows[i] is the same whatever was read before it, in whichever process.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        shape: RowShape,
        mixture: Mixture | None,
        skip_budget: float,
    ):
        """mixture: of the sources; None: a single pass over the first, then the second, and so on."""
        self.shape = shape
        self.skips = Skips(skip_budget, "Data")
        self._sources = list(sources)
        self._mixture = mixture
        self._ends = np.cumsum([len(source) for source in sources])

    @property
    def endless(self) -> bool:
        """Whether there are rows at and after len(rows)."""
        return self._mixture is not None

    def __len__(self) -> int:
        """Rows in one pass over every source. Training rows go on after that."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        """Row `index`; skipped samples are counted."""
        row, report = self.load(index)
        self.skips.add([report])
        return row

    def load(self, index: int) -> tuple[Row, Report]:
        """Row `index`, and what was skipped in it; counts nothing."""
        source, place = self._locate(index)
        return source.load(place)

    def sample_ids(self, index: int) -> list[str]:
        """The ids of the examples in row `index`."""
        source, place = self._locate(index)
        return source.sample_ids(place)

    @property
    def skipped(self) -> dict[str, int]:
        """Samples skipped so far by cause: when planning, once, and when loading, each time they were met."""
        causes = self.skips.total.causes.copy()
        for source in self._sources:
            causes.update(source.plan.report.causes)
        return dict(causes)

    @property
    def skip_examples(self) -> dict[str, str]:
        """The first skipped sample of each cause, and what is wrong with it."""
        examples = self.skips.examples
        for source in reversed(self._sources):
            examples = examples | source.plan.report.examples
        return examples

    def statistics(self) -> Statistics:
        """What an average row holds, and each source's rows."""
        sources = {source.name: source.statistics() for source in self._sources}
        shares: Sequence[float] = [len(source) / len(self) for source in self._sources]
        if self._mixture is not None:
            shares = self._mixture.shares

        def mean(name: str) -> float:
            return sum(
                share * getattr(source, name)
                for share, source in zip(shares, sources.values(), strict=True)
            )

        return Statistics(
            rows=len(self),
            samples=sum(source.samples for source in sources.values()),
            fill=mean("fill"),
            text_fill=mean("text_fill"),
            image_fill=mean("image_fill"),
            supervised=mean("supervised"),
            skipped=self.skipped,
            sources=sources,
            skip_examples=self.skip_examples,
        )

    def _locate(self, index: int) -> tuple[SourceRows, int]:
        if index < 0 or (not self.endless and index >= len(self)):
            raise IndexError(f"row {index}" if self.endless else f"row {index} of {len(self)}")
        if self._mixture is not None:
            number, place = self._mixture.locate(index)
            return self._sources[number], place
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[number], index - int(self._ends[number] - len(self._sources[number]))


def make_rows(
    data: DataConfig, model: VLMConfig, tokenizer: Tokenizer, seed: int, part: Part = "train"
) -> Rows:
    """Opens a stage's sources and plans their rows. Every example is tokenised once, to learn its length.

    Args:
        part: "train": endless, shuffled, flipped if the config says so. "holdout": one pass over the held-out examples as they are, for a
            held-out loss that is the same each time; has len(rows) rows.

    Raises:
        InputError: a source cannot be read, holds nothing to learn from or too much that cannot be used, or nothing is held out.
    """
    train = part == "train"
    if seed < 0:
        raise InputError(f"seed must not be negative, but it is {seed}.")
    if not data.sources:
        raise InputError("A stage needs at least one data source.")
    if not train and not data.holdout:
        raise InputError("There is no held-out data: holdout is 0.")
    shape = RowShape(
        data.text_length,
        data.images_per_row,
        model.visual_tokens,
        model.vision.image_size,
        tokenizer.pad,
        data.resize,
    )
    segment_tokenizer = SegmentTokenizer(
        tokenizer, model.visual_tokens, data.train_on_special_tokens
    )
    template = find_template(data.template, tokenizer)
    weights = [config.weight for config in data.sources.values()]
    mixture = Mixture(weights, list(data.sources)) if train else None
    images = ImageCache()
    sources = [
        SourceRows(
            name,
            config.open(template, holdout=data.holdout, part=part),
            segment_tokenizer,
            shape,
            images,
            seed=seed,
            skip_budget=data.skip_budget,
            shuffle=train,
            flip=train and data.flip,
        )
        for name, config in data.sources.items()
    ]
    return Rows(sources, shape, mixture, data.skip_budget)
