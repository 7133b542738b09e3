"""Strict conversion: whatever does not fit names the setting, what is expected and what was probably meant."""

import dataclasses
import json
import string
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.errors import InputError
from mmjax.recipe.schema import ABSENT, KeyPath, choose, convert, differences, nearest, suggestion
from mmjax.recipe.serialization import to_plain


@dataclasses.dataclass(frozen=True)
class Square:
    kind: Literal["square"]
    side: int


@dataclasses.dataclass(frozen=True)
class Circle:
    kind: Literal["circle"]
    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class Drawing:
    shapes: dict[str, Square | Circle]
    color: Literal["red", "green"] = "red"
    sizes: tuple[int, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    names: tuple[str, ...] = ()
    mean: tuple[float, float, float] = (0.0, 0.5, 1.0)
    limit: int | None = None
    filled: bool = False
    title: str = "none given"
    scale: float = 1.0
    main: Square | None = None


def drawing(**fields) -> Drawing:
    return convert({"shapes": {}} | fields, Drawing, KeyPath(("drawing",)))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("limit", "1e3", 1000),
        ("limit", 2e3, 2000),
        ("limit", "12", 12),
        ("limit", str(2**63 + 1), 2**63 + 1),
        ("limit", "none", None),
        ("limit", None, None),
        ("scale", "3", 3.0),
        ("scale", "-2.5e-3", -2.5e-3),
        ("filled", "true", True),
        ("filled", "False", False),
        ("sizes", "16,8,2", (16, 8, 2)),
        ("sizes", "(16, 8, 2)", (16, 8, 2)),
        ("sizes", "[16]", (16,)),
        ("sizes", "16", (16,)),
        ("sizes", "()", ()),
        ("sizes", "", ()),
        ("sizes", [1.0, "2"], (1, 2)),
        ("ranges", "((16, 27),)", ((16, 27),)),
        ("names", "vision/*,connector/*", ("vision/*", "connector/*")),
        ("names", "('a', 'b')", ("a", "b")),
        ("mean", "0,0,1", (0.0, 0.0, 1.0)),
        ("title", "12", "12"),
        ("title", "none", "none"),
        ("title", None, ""),
        ("color", "green", "green"),
        ("main", {"kind": "square", "side": 2}, Square("square", 2)),
        ("main", "none", None),
    ],
)
def test_values_and_text_become_the_type_of_the_field(field, value, expected):
    result = getattr(drawing(**{field: value}), field)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": "many"}, "config.drawing.limit is 'many'; a whole number is expected"),
        ({"limit": 2.5}, "config.drawing.limit is 2.5; a whole number"),
        ({"limit": True}, "a whole number"),
        ({"limit": "inf"}, "a whole number"),
        ({"limit": "True"}, "a whole number"),
        ({"scale": "nan"}, "config.drawing.scale is 'nan'; a number"),
        (
            {"scale": None},
            "config.drawing.scale has no value yet; give one with --config.drawing.scale=...",
        ),
        ({"filled": 1}, "true or false"),
        ({"filled": "yes"}, "true or false"),
        ({"title": 3}, "a text"),
        ({"sizes": 5}, "a list of whole numbers"),
        ({"sizes": "a,b"}, "config.drawing.sizes.0 is 'a'; a whole number"),
        (
            {"ranges": "(16, 27)"},
            "config.drawing.ranges is (16, 27); a list of pairs, such as ((16, 27),), is expected",
        ),
        ({"ranges": "((16, 27, 28),)"}, "config.drawing.ranges.0 has 3 items; 2 are expected"),
        ({"mean": "0,1"}, "config.drawing.mean has 2 items; 3 are expected"),
        ({"color": "gren"}, "Did you mean green?"),
        ({"colour": "red"}, "config.drawing.colour: there is no such setting. Did you mean color?"),
        ({"shapes": 3}, "a group of settings"),
        (
            {"shapes": {"a": {"kind": "sqare", "side": 1}}},
            "config.drawing.shapes.a.kind is 'sqare'. Did you mean square?",
        ),
        (
            {"shapes": {"a": {"side": 1}}},
            "config.drawing.shapes.a.kind is missing; it says which of square, circle",
        ),
        (
            {"shapes": {"a": {"kind": "square"}}},
            "config.drawing.shapes.a.side is missing: a whole number is expected",
        ),
        (
            {"shapes": {"a": {"kind": "circle", "side": 1}}},
            "config.drawing.shapes.a.side: there is no such setting",
        ),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    with pytest.raises(InputError) as caught:
        drawing(**fields)
    assert message in str(caught.value)


def test_a_missing_group_is_named():
    with pytest.raises(InputError, match=r"config\.drawing\.shapes is missing"):
        convert({}, Drawing, KeyPath(("drawing",)))


_shapes = st.one_of(
    st.builds(Square, st.just("square"), st.integers()),
    st.builds(Circle, st.just("circle"), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(
    st.builds(
        Drawing,
        shapes=st.dictionaries(st.text(), _shapes, max_size=3),
        color=st.sampled_from(["red", "green"]),
        sizes=st.lists(st.integers(), max_size=3).map(tuple),
        limit=st.none() | st.integers(),
        filled=st.booleans(),
        title=st.text(),
        scale=st.floats(allow_nan=False, allow_infinity=False),
        main=st.none() | st.builds(Square, st.just("square"), st.integers()),
    )
)
def test_plain_data_converts_back_through_json(drawing):
    assert convert(json.loads(json.dumps(to_plain(drawing))), Drawing, KeyPath()) == drawing


_word = st.text(string.ascii_lowercase + "_", min_size=4, max_size=12)


@given(st.lists(_word, min_size=1, max_size=8, unique=True), st.data())
def test_a_name_that_exists_is_its_own_nearest(names, data):
    name = data.draw(st.sampled_from(names))
    assert nearest(name, names) == name
    assert nearest(name.upper(), names) == name


@given(_word, st.lists(_word, max_size=6), st.data())
def test_one_slip_of_the_finger_still_finds_a_name(name, others, data):
    """A missing letter leaves a ratio of at least 6/7 for words of four letters and more; only an equally near name may win."""
    position = data.draw(st.integers(0, len(name) - 1))
    slip = name[:position] + name[position + 1 :]
    found = nearest(slip, [name, *others])
    assert found == name or found in others
    assert nearest(slip, [name]) == name


@given(_word)
def test_nothing_is_near_what_shares_no_letter(name):
    assert nearest("0123456789", [name]) is None


def test_a_choice_shows_what_there_is():
    assert choose("b", {"a": 1, "b": 2}, "letter") == 2
    with pytest.raises(
        InputError, match=r"There is no variant '7bb'. Did you mean 7b\? There are: '', 7b, 8b."
    ):
        choose("7bb", {"": 0, "7b": 1, "8b": 2}, "variant")
    assert suggestion("x", ["one"]) == "There is: one."
    assert suggestion("x", []) == "There are: none."


def test_differences_name_leaves_with_both_values():
    one = drawing(
        shapes={"a": {"kind": "square", "side": 1}, "gone": {"kind": "circle"}}, scale=1.0
    )
    other = drawing(
        shapes={"a": {"kind": "square", "side": 2}, "new": {"kind": "circle"}}, scale=1.000001
    )
    gone, new = Circle("circle"), Circle("circle")
    assert list(differences(one, other)) == [
        ("shapes.a.side", 1, 2),
        ("shapes.gone", gone, ABSENT),
        ("shapes.new", ABSENT, new),
        ("scale", 1.0, 1.000001),
    ]
    assert [path for path, *_ in differences(one, other, path="d", tolerance=1e-5)] == [
        "d.shapes.a.side", "d.shapes.gone", "d.shapes.new",
    ]  # fmt: skip
    assert not list(differences(one, other, ignored=("shapes", "scale")))


def test_configs_of_other_kinds_differ_in_their_kind_and_in_what_only_one_has():
    square, circle = Square("square", 2), Circle("circle", 2.0)
    assert list(differences(square, circle)) == [
        ("kind", "square", "circle"),
        ("side", 2, ABSENT),
        ("radius", ABSENT, 2.0),
    ]
    assert list(differences(None, circle, path="shape")) == [("shape", None, circle)]


def test_lists_are_compared_as_a_whole_and_tuples_of_numbers_within_the_tolerance():
    assert list(differences({"b": [1, 2]}, {"b": [1]})) == [("b", [1, 2], [1])]
    near = {"mean": (0.1, 0.2)}, {"mean": (0.1, 0.2000001)}
    assert list(differences(*near)) and not list(differences(*near, tolerance=1e-5))
    assert list(differences({"mean": (0.1,)}, {"mean": (0.1, 0.2)}, tolerance=1.0))
