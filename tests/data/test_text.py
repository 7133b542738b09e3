"""Templates and tokenisation: what carries loss, and what the positions predict."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.data.examples import Image, Special, Text
from mmjax.data.text.templates import TEMPLATES, Turn, find_template, prompt_of
from mmjax.data.text.tokenizer import WordTokenizer, tokenise
from mmjax.errors import InputError

TOKENIZER = WordTokenizer.build(
    ["what is there? a red circle USER: ASSISTANT:"],
    special_tokens=TEMPLATES["llama3"].special_tokens,
)
IMAGE = Image("a.png")
words = st.text(st.sampled_from("ab <>|é?\n"), min_size=1, max_size=8)
segments = st.lists(
    st.one_of(
        st.builds(Text, words, st.booleans()),
        st.builds(Special, st.sampled_from(["bos", "eos", "<|eot_id|>"]), st.booleans()),
        st.just(IMAGE),
    )
)
template_names = st.sampled_from(list(TEMPLATES))


def as_text(continuation):
    """A continuation as one string, what carries loss in brackets."""
    return "".join(map(segment_as_text, continuation))


def segment_as_text(segment):
    if isinstance(segment, Image):
        return "<image>"
    text = f"<{segment.name}>" if isinstance(segment, Special) else segment.text
    return f"[{text}]" if segment.loss else text


SYSTEM = (
    " A chat between a curious user and an artificial intelligence assistant."
    " The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.mark.parametrize(
    ("name", "question", "caption"),
    [
        ("plain", "<bos>what?[ red][<eos>]", "<bos>[a circle][<eos>]"),
        (
            "short_prompt",
            "<bos>Question: what? Short answer:[ red][<eos>]",
            "<bos>a short image description:[ a circle][<eos>]",
        ),
        (
            "vicuna_v1",
            f"<bos>{SYSTEM} USER: what? ASSISTANT:[ red][<eos>]",
            f"<bos>{SYSTEM} USER: a short image description: ASSISTANT:[ a circle][<eos>]",
        ),
        (
            "llama3",
            "<bos><<|start_header_id|>>user<<|end_header_id|>>\n\nwhat?<<|eot_id|>><<|start_header_id|>>assistant<<|end_header_id|>>\n\n[red][<<|eot_id|>>]",
            "<bos><<|start_header_id|>>user<<|end_header_id|>>\n\na short image description:<<|eot_id|>>"
            "<<|start_header_id|>>assistant<<|end_header_id|>>\n\n[a circle][<<|eot_id|>>]",
        ),
    ],
)
def test_formats(name, question, caption):
    template = find_template(name)
    assert as_text(template.question("what?", "red")) == question
    assert as_text(template.caption("a circle")) == caption


def test_a_conversation_with_system_turn_two_rounds_and_a_image_in_place():
    turns = [
        Turn("system", (Text("Be brief."),)),
        Turn("user", (Text("see "), IMAGE, Text("\nwhat?"))),
        Turn("assistant", (Text("red"),)),
    ]
    turns += [Turn("user", (Text("sure?"),)), Turn("assistant", (Text("yes"),))]
    expected = {
        "plain": "<bos>Be brief.see <image>\nwhat?[ red][<eos>]sure?[ yes][<eos>]",
        "vicuna_v1": "<bos> Be brief. USER: see <image>\nwhat? ASSISTANT:[ red][<eos>] USER: sure? ASSISTANT:[ yes][<eos>]",
    }
    assert {name: as_text(find_template(name).conversation(turns)) for name in expected} == expected
    llama3 = as_text(find_template("llama3").conversation(turns))
    assert llama3.startswith(
        "<bos><<|start_header_id|>>system<<|end_header_id|>>\n\nBe brief.<<|eot_id|>><<|start_header_id|>>user"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_role_decides_on_the_loss_whatever_a_text_says(name):
    conversations = [
        [
            Turn("system", (Text("s", loss),)),
            Turn("user", (Text("u", loss),)),
            Turn("assistant", (Text("a", loss),)),
        ]
        for loss in (False, True)
    ]
    assert find_template(name).conversation(conversations[0]) == find_template(name).conversation(
        conversations[1]
    )


@given(template_names, words, words)
def test_a_prompt_is_its_question_continuation_up_to_the_answer(name, question, answer):
    template = find_template(name)
    continuation = template.question(question, answer)
    assert (
        prompt_of(continuation)
        == template.prompt(question)
        == continuation[: len(continuation) - 2]
    )
    assert continuation[-1] == Special(template.stop, loss=True)


@given(template_names, words, words)
def test_neighbouring_texts_differ_in_loss(name, question, answer):
    continuation = find_template(name).question(question, answer)
    for before, after in itertools.pairwise(continuation):
        assert not (
            isinstance(before, Text) and isinstance(after, Text) and before.loss == after.loss
        )


@given(template_names, words, words)
def test_supervised_tokens_are_the_answer_and_its_end(name, question, answer):
    template = find_template(name)
    text = tokenise(template.question(question, answer), TOKENIZER, 3)
    supervised = text.tokens[text.loss]
    assert TOKENIZER.decode(supervised).removeprefix(" ") == answer.removeprefix(" ")
    assert supervised[-1] == (
        TOKENIZER.special("<|eot_id|>") if name == "llama3" else TOKENIZER.eos
    )


def test_an_unknown_template_is_an_input_error():
    with pytest.raises(InputError, match="vicuna_v1"):
        find_template("vicuna")


@given(segments, st.integers(1, 5))
def test_tokenise_is_the_concatenation_of_its_segments(continuation, visual_tokens):
    whole = tokenise(continuation, TOKENIZER, visual_tokens)
    parts = [tokenise([segment], TOKENIZER, visual_tokens) for segment in continuation]
    np.testing.assert_array_equal(
        whole.tokens, np.concatenate([part.tokens for part in parts] or [[]])
    )
    np.testing.assert_array_equal(whole.loss, np.concatenate([part.loss for part in parts] or [[]]))
    assert whole.tokens.dtype == np.int32 and whole.loss.dtype == bool


@given(segments, st.integers(1, 5))
def test_images_are_whole_runs_of_placeholders_without_loss(continuation, visual_tokens):
    text = tokenise(continuation, TOKENIZER, visual_tokens)
    places = np.flatnonzero(text.tokens == TOKENIZER.image)
    expected = [offset + k for offset, _ in text.images for k in range(visual_tokens)]
    assert places.tolist() == expected and len(text.images) == sum(
        isinstance(segment, Image) for segment in continuation
    )
    assert not text.loss[places].any()


@given(segments, st.integers(1, 5))
def test_inputs_lose_no_target_and_no_image(continuation, visual_tokens):
    text = tokenise(continuation, TOKENIZER, visual_tokens)
    tokens, targets = text.inputs()
    assert len(tokens) == len(targets)
    np.testing.assert_array_equal(targets[targets >= 0], text.tokens[1:][text.loss[1:]])
    assert (tokens == TOKENIZER.image).sum() == len(text.images) * visual_tokens
    assert len(text) - len(tokens) in (0, 1)


def test_each_position_predicts_the_next_token():
    text = tokenise(
        (Special("bos"), Text(" a"), Text(" red circle", True), Special("eos", True)), TOKENIZER, 1
    )
    a, red, circle = (TOKENIZER.encode(word)[0] for word in (" a", " red", " circle"))
    tokens, targets = text.inputs()
    assert tokens.tolist() == [TOKENIZER.bos, a, red, circle]
    assert targets.tolist() == [-1, red, circle, TOKENIZER.eos]


def test_without_a_bos_texts_begin_with_themselves_unless_their_first_token_is_to_be_learned():
    """Something must stand before a token that is predicted: what ends texts, as in GPT-2."""
    tokenizer = WordTokenizer.build(["red circle"])
    tokenizer.has_bos, tokenizer.bos = False, tokenizer.eos
    plain, eos, words = TEMPLATES["plain"], tokenizer.eos, tokenizer.encode

    def tokens(continuation):
        return tokenise(continuation, tokenizer, 1).tokens.tolist()

    assert tokens(plain.question("red", " circle")) == [*words("red"), *words(" circle"), eos]
    assert tokens(plain.prompt("red")) == words("red")
    assert tokens(plain.caption("red")) == [eos, *words("red"), eos]
    assert tokens(prompt_of(plain.caption("red"))) == [eos]
    assert tokens(plain.question("", "red")) == [eos, *words(" red"), eos]
    assert tokens(prompt_of(plain.question("", "red"))) == [eos]
    seen = plain.conversation([Turn("user", (Image(b""),)), Turn("assistant", (Text("red"),))])
    assert tokens(seen)[0] == tokenizer.image
    for continuation in (plain.question("red", " circle"), plain.caption("red"), seen):
        found = tokenise(continuation, tokenizer, 1)
        assert (found.targets >= 0).sum() == found.loss.sum()


def test_an_image_at_the_end_of_a_continuation_stays_whole():
    text = tokenise((Text("a", True), IMAGE), TOKENIZER, 4)
    assert (text.inputs()[0] == TOKENIZER.image).sum() == 4


def test_special_tokens_are_learned_wherever_they_stand_but_no_role_and_nothing_that_is_asked():
    """arXiv:2505.22664, official code: the stages on the surrogate."""
    continuation = find_template("llama3").question("what is there?", "red")
    plain, all_special = (
        tokenise(continuation, TOKENIZER, 3, train_on_special_tokens=special)
        for special in (False, True)
    )
    np.testing.assert_array_equal(plain.tokens, all_special.tokens)
    header, end = (
        [TOKENIZER.special(f"<|{name}|>") for name in names]
        for names in (("start_header_id", "end_header_id"), ("eot_id",))
    )
    assert plain.tokens[plain.loss].tolist() == TOKENIZER.encode("red") + end
    assert (
        all_special.tokens[all_special.loss].tolist()
        == header + end + header + TOKENIZER.encode("red") + end
    )
    assert not all_special.loss[0] and all_special.tokens[0] == TOKENIZER.bos


def test_unknown_words_are_those_that_no_text_had_with_a_space_or_without():
    assert TOKENIZER.unknown_words("what red circles  are there?! red") == ["circles", "are"]
    assert TOKENIZER.unknown_words(" a circle?") == TOKENIZER.unknown_words("") == []
