"""The closed form: values worked out by hand from the paper's sizes, and where it is zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.ledger import PLAIN, REMATERIALISED, break_even, predicted_saving

LLAMA_70B, LLAMA_8B, LLAMA_3B = 0.539, 0.647, 0.687


@pytest.mark.parametrize(
    ("ratio", "text", "last", "plain", "rematerialised"),
    [
        (LLAMA_70B, 0.43, 0.2, 35.6, 32.4),
        (LLAMA_70B, 0.43, 0.1, 41.6, 38.2),
        (LLAMA_70B, 0.8, 0.2, 27.6, 23.9),
        (LLAMA_8B, 0.43, 0.2, 25.1, 21.2),
        (LLAMA_3B, 0.43, 0.2, 21.2, 17.0),
    ],
)
def test_the_decoders_of_the_paper(ratio, text, last, plain, rematerialised):
    """docs/surrogates.md shows these numbers."""
    found = [
        round(100 * predicted_saving(ratio, text, last, multipliers), 1)
        for multipliers in (PLAIN, REMATERIALISED)
    ]
    assert found == [plain, rematerialised]


def test_by_hand():
    """r = 1/2, no text, nothing trained in the end: two passes at half the size, against one frozen and one trained: 1 - 4 / 10."""
    assert predicted_saving(0.5, 0, 0) == pytest.approx(0.6)
    assert predicted_saving(1, 0, 1) == pytest.approx(-0.4), "the whole decoder, and one pass more"


@pytest.mark.parametrize(
    ("text", "last", "plain", "rematerialised"),
    [(0.43, 0.2, 0.905, 0.850), (0.43, 0.1, 0.967, 0.905), (0.8, 0.2, 0.786, 0.738)],
)
def test_where_nothing_is_saved(text, last, plain, rematerialised):
    assert [
        round(break_even(text, last, multipliers), 3) for multipliers in (PLAIN, REMATERIALISED)
    ] == [plain, rematerialised]


@given(st.floats(0, 3), st.floats(0, 1), st.sampled_from([PLAIN, REMATERIALISED]))
def test_break_even_is_where_the_saving_is_zero(text, last, multipliers):
    ratio = break_even(text, last, multipliers)
    assert predicted_saving(ratio, text, last, multipliers) == pytest.approx(0, abs=1e-12)
    assert (
        predicted_saving(0.9 * ratio, text, last, multipliers)
        > 0
        > predicted_saving(1.1 * ratio, text, last, multipliers)
    )
