"""CIDEr-D against sums done by hand, and what it must not depend on."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.evaluation.scores import cider_d

words = st.sampled_from(["a", "red", "boat", "on", "the", "lake", "two", "birds"])
captions = st.lists(words, min_size=1, max_size=8).map(" ".join)
corpora = st.lists(
    st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=2, max_size=6
)


def scores(corpus):
    return cider_d([candidate for candidate, _ in corpus], [references for _, references in corpus])


def test_two_images_by_hand():
    """Two images, so that a word of one weighs log 2 = w, and "a", which both have, nothing.

    "a frog sat" beside "a frog": words (frog w, sat w) and (frog w): w^2 / (sqrt(2) w * w) = 1 / sqrt 2; pairs (a frog w, frog sat w)
    and (a frog w): 1 / sqrt 2; no triple and no four in the reference: 0. One word longer: exp(-1 / 72). Mean over four, times ten.
    """
    expected = 10 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert cider_d(["a frog sat", "a bird"], [["a frog"], ["a bird"]]) == pytest.approx(
        [expected, 5.0]
    )


def test_three_images_by_hand():
    """A frog is in two of three images, and weighs log 1.5; green and a bird in one: log 3. Two true captions: the mean of both.

    Words of "green frog": (l3, l15). Beside "frog": l15^2 / (sqrt(l3^2 + l15^2) l15); beside "green frog": 1. Pairs: 0 and 1.
    One word of difference to the first, none to the second.
    """
    l3, l15 = math.log(3), math.log(1.5)
    first = (l15 / math.hypot(l3, l15)) / 4 * math.exp(-1 / 72)
    found = cider_d(["green frog", "frog", "bird"], [["frog", "green frog"], ["frog"], ["bird"]])
    assert found == pytest.approx([10 * (first + 2 / 4) / 2, 2.5, 2.5])


def test_what_is_repeated_is_clipped():
    """Words (frog 2w) beside (frog w): w * w / (2w * w) = 1 / 2, where the cosine is 1; one pair that the reference has not."""
    found = cider_d(["frog frog", "bird"], [["frog"], ["bird"]])
    assert found[0] == pytest.approx(10 * 0.5 / 4 * math.exp(-1 / 72))


def test_four_words_reach_ten_and_fewer_do_not():
    references = ["a green tree frog", "two birds", "boat"]
    assert cider_d(references, [[reference] for reference in references]) == pytest.approx(
        [10.0, 5.0, 2.5]
    )


def test_case_and_punctuation_do_not_count():
    references = [["A green frog, on the lake."], ["Two birds!"]]
    assert cider_d(["a GREEN frog on the lake", "two-birds"], references) == pytest.approx(
        [10.0, 5.0]
    )


def test_a_single_image_nothing_and_no_word_in_common_score_zero():
    assert cider_d(["a frog"], [["a frog"]]) == [0.0]
    assert cider_d(["", "...", "a boat"], [["a frog"], ["birds"], ["two red lakes"]]) == [
        0.0,
        0.0,
        0.0,
    ]
    with pytest.raises(ValueError):
        cider_d(["a", "b"], [["a"]])


@given(corpora, captions)
def test_nothing_beats_the_reference_itself(corpus, other):
    """With one reference; the weights come from references, which stay the same."""
    references = [references[:1] for _, references in corpus]
    best = cider_d([one for (one,) in references], references)
    found = cider_d([other, *(candidate for candidate, _ in corpus[1:])], references)
    assert all(
        0 <= score <= top + 1e-9 <= 10 + 1e-8 for score, top in zip(found, best, strict=True)
    )


@given(corpora, st.randoms())
def test_the_order_of_images_and_of_references_does_not_count(corpus, generator):
    order = generator.sample(range(len(corpus)), len(corpus))
    shuffled = [
        (corpus[index][0], generator.sample(corpus[index][1], len(corpus[index][1])))
        for index in order
    ]
    before = scores(corpus)
    assert scores(shuffled) == pytest.approx([before[index] for index in order])


@given(corpora)
def test_the_corpus_twice_scores_the_same(corpus):
    """Frequencies are shares of the images. (An n-gram of no reference counts as that of one, so candidates are references of others.)"""
    others = [
        (other[0], references)
        for (_, references), (_, other) in zip(corpus, [*corpus[1:], corpus[0]], strict=True)
    ]
    assert scores(others * 2) == pytest.approx(scores(others) * 2)
