"""Small examples, and rows made of them."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

from mmjax.data.examples import Example, Image, SampleError, Special, Text
from mmjax.data.images.decode import ImageCache
from mmjax.data.packing.layout import RowShape
from mmjax.data.packing.packing import Mixture
from mmjax.data.packing.rows import Rows, SourceRows
from mmjax.data.text.tokenizer import SegmentTokenizer, WordTokenizer

VISUAL_TOKENS = 3
WORDS = 40


class Examples(list):
    """A source held in memory; an item that is an exception is raised."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if isinstance(item, Exception):
            raise item
        return item


@pytest.fixture(scope="session")
def tokenizer() -> WordTokenizer:
    return WordTokenizer([f" w{number}" for number in range(WORDS)])


@pytest.fixture(scope="session")
def segment_tokenizer(tokenizer) -> SegmentTokenizer:
    return SegmentTokenizer(tokenizer, VISUAL_TOKENS)


@pytest.fixture(scope="session")
def in_memory() -> type[Examples]:
    return Examples


@pytest.fixture(scope="session")
def image() -> Callable[[int], Image]:
    """An image of one colour; a negative one cannot be read."""

    def make(color: int = 0) -> Image:
        return Image(np.full((4, 4, 3), color, np.uint8)) if color >= 0 else Image(b"no image")

    return make


@pytest.fixture(scope="session")
def question() -> Callable[..., tuple]:
    """A continuation with so many words without loss, then with loss; it has two special tokens more. Its words count up from `first`."""

    def make(prompt: int = 2, answer: int = 1, first: int = 0) -> tuple:
        words = [f" w{(first + number) % WORDS}" for number in range(prompt + answer)]
        end = Special("eos", loss=answer > 0)
        return (
            Special("bos"),
            Text("".join(words[:prompt])),
            Text("".join(words[prompt:]), loss=answer > 0),
            end,
        )

    return make


@pytest.fixture(scope="session")
def pack(tokenizer, segment_tokenizer) -> Callable[..., Rows]:
    """Rows of lists of examples, by source."""

    def make(
        sources: dict[str, Sequence[Example | SampleError]],
        text_length: int = 16,
        images_per_row: int = 2,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        train: bool = True,
        flip: bool = False,
        skip_budget: float = 1.0,
    ) -> Rows:
        shape = RowShape(text_length, images_per_row, VISUAL_TOKENS, 4, tokenizer.pad)
        parts = [
            SourceRows(
                name,
                Examples(source),
                segment_tokenizer,
                shape,
                ImageCache(),
                seed=seed,
                skip_budget=skip_budget,
                shuffle=train,
                flip=flip,
            )
            for name, source in sources.items()
        ]
        return Rows(
            parts, shape, Mixture(weights or [1.0] * len(parts)) if train else None, skip_budget
        )

    return make


@pytest.fixture(scope="session")
def example_lists(image, question) -> st.SearchStrategy[list[Example]]:
    """Images with questions, questions without an image, and conversations with images inside. Each continuation has other words."""

    def build(draws: list[tuple]) -> list[Example]:
        examples = []
        for number, (kind, lengths) in enumerate(draws):
            continuations = tuple(
                question(prompt, answer, first=number * 7 + place * 3)
                for place, (prompt, answer) in enumerate(lengths)
            )
            if kind == "conversation":
                inside = [(image(number), *continuation) for continuation in continuations[:2]]
                continuations = (tuple(segment for part in inside for segment in part),)
            prefix = (image(number),) if kind == "image" else ()
            examples.append(Example(prefix, continuations, f"example {number}"))
        return examples

    lengths = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=6)
    kinds = st.sampled_from(["image", "text", "conversation"])
    return st.lists(st.tuples(kinds, lengths), min_size=1, max_size=12).map(build)
