"""Sources are found by listing their folder: a kind of one's own is one file."""

import dataclasses
import importlib
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from mmjax.data import sources
from mmjax.data.packing.rows import make_rows
from mmjax.data.sources.base import Source, SourceConfig
from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.errors import InputError
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.recipe.recipe import DataConfig
from mmjax.recipe.schema import KeyPath, convert
from mmjax.typing import NO_TARGET

OWN = """
import dataclasses
from typing import Literal

import numpy as np

from mmjax.data.examples import Example, Image
from mmjax.data.sources.base import Source, SourceConfig, check_index, split_part


@dataclasses.dataclass(frozen=True)
class GreySource(SourceConfig):
    kind: Literal["greys"]
    count: int
    weight: float = 1.0

    def open(self, template, *, holdout=0, part="train"):
        return Greys(self, template, split_part(self.count, holdout, part, "greys"))


class Greys(Source):
    def __init__(self, config, template, indices):
        self.template, self.indices = template, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        grey = self.indices[check_index(index, len(self))]
        image = Image(np.full((4, 4, 3), grey, np.uint8))
        return Example((image,), (self.template.caption(f"grey {grey}"),), f"greys/{grey}")
"""


@pytest.fixture
def own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file with a kind of its own in the folder of sources."""
    (tmp_path / "greys.py").write_text(OWN)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("mmjax.data.sources.greys", None)
    if hasattr(sources, "greys"):
        del sources.greys


def read(kind: str) -> DataConfig:
    """Held-out data, as a config file would say it."""
    tree = {"sources": {"own": {"kind": kind, "count": "6"}}, "text_length": 8, "holdout": 2}
    return convert(tree, DataConfig, KeyPath())


@pytest.mark.usefixtures("own")
def test_a_source_of_ones_own_reaches_the_rows():
    data = read("greys")
    assert data.sources["own"].weight == 1.0 and not data.sources["own"].conversations
    size = {"norm": "rms", "class_token": False, "embedding_norm": False}
    model = VLMConfig(
        ViTConfig(4, 4, 8, 1, 2, 8, **size),
        LinearConfig("linear", (1,)),
        DecoderConfig(300, 8, 1, 2, 1, 4, 8),
    )
    tokenizer = WordTokenizer.build(data.sources["own"].open(TEMPLATES["plain"]).texts())
    train, held = (make_rows(data, model, tokenizer, 0, part) for part in ("train", "holdout"))
    assert (len(train), len(held)) == (4, 2)
    assert [held.sample_ids(index) for index in range(2)] == [["greys/4"], ["greys/5"]]
    row = held[1]
    assert row.image_mask.all() and np.unique(row.images).tolist() == [5]
    assert tokenizer.decode(row.targets[row.targets != NO_TARGET]) == "grey 5"


def test_it_is_gone_without_its_file():
    with pytest.raises(
        InputError, match=r"kind is 'greys'\. There are: easy_vqa, jsonl, llava, tfds\.$"
    ):
        read("greys")


def test_every_kind_keeps_what_the_base_promises():
    kinds = SourceConfig.kinds()
    assert {"easy_vqa", "jsonl", "llava", "tfds"} <= set(kinds)
    for name, kind in kinds.items():
        fields = {field.name: field for field in dataclasses.fields(kind)}
        assert fields["weight"].default == 1.0, name
        assert kind.open is not SourceConfig.open, name
    module = sys.modules[kinds["jsonl"].__module__]
    assert kinds["jsonl"].captions and module.Jsonl.captioned is not Source.captioned
