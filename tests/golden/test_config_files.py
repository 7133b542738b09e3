"""What golden files cannot say of configs/: that a setting changed on the command line changes that one place."""

from collections.abc import Iterator

import pytest
from ml_collections import ConfigDict, FieldReference

from mmjax.config.load import read_config
from tests.golden import update as golden


@pytest.mark.parametrize("variant", (*golden.VARIANTS, *golden.GRAFTED))
def test_no_group_and_no_placeholder_stands_in_two_places(variant):
    config = read_config(*golden.place(variant))
    found = list(groups_and_references(config))
    assert len(set(map(id, found))) == len(found) > 10


def groups_and_references(config: ConfigDict) -> Iterator[ConfigDict | FieldReference]:
    """All of them below `config`, as often as they stand there."""
    for _, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict | FieldReference):
            yield value
        if isinstance(value, ConfigDict):
            yield from groups_and_references(value)
