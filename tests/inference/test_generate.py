"""Generation with a cache gives what the whole packed row gives, token by token."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from mmjax.data.examples import Example, Image, Special, Text
from mmjax.data.packing.layout import RowShape, RowWriter, stack
from mmjax.data.text.templates import Turn, find_template
from mmjax.data.text.tokenizer import SegmentTokenizer, TokenizedSegment, WordTokenizer
from mmjax.errors import InputError, Preempted
from mmjax.inference.generate import Generator
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LoRAConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.typing import NO_TARGET, Batch

WORDS = "is there a red blue circle square triangle ? yes no what shape color the in image of one two three"
TOKENIZER = WordTokenizer.build(
    [f" {word}" for word in WORDS.split()] + WORDS.split(),
    special_tokens=find_template("llama3").special_tokens,
)
QUESTIONS = (
    "is there a red circle?",
    "what shape?",
    "what is the color of the shape in the image?",
    "is there a blue square?",
    "what color?",
)


def make_config(**changes: object) -> VLMConfig:
    return VLMConfig(
        ViTConfig(16, 4, 16, 1, 2, 32, class_token=False, weight_std=None, embedding_std=0.5),
        ResamplerConfig(
            "resampler", (4, 2), (2, 4), (1,), 16, 8, 32, weight_std=None, query_std=0.5
        ),
        DecoderConfig(
            TOKENIZER.vocabulary + 3, 16, 2, 2, 1, 8, 32, weight_std=None, embedding_std=1.0
        ),
        compute_dtype="float32",
        **changes,
    )


CONFIG = make_config()
LONGEST = 6


@pytest.fixture(scope="module")
def params() -> dict:
    return parameters.initialize(CONFIG, jax.random.key(2))


@functools.cache
def make_generator(config: VLMConfig = CONFIG, **options: object) -> Generator:
    """The same one is made once: what tests ask in batches of equal shapes runs in the same programs."""
    options = {"batch_size": 4, "max_new_tokens": LONGEST} | options
    return Generator(parameters.abstract(config)[0], config, TOKENIZER, **options)


def image(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def continued(question: TokenizedSegment, answer: list[int]) -> TokenizedSegment:
    """The question with an answer behind it."""
    tokens = np.concatenate([question.tokens, np.array(answer, np.int32)])
    return dataclasses.replace(
        question, tokens=tokens, targets=np.full(len(tokens), NO_TARGET, np.int32)
    )


@functools.cache
def full_pass(config: VLMConfig) -> Callable[[dict, Batch], jax.Array]:
    """(parameters, batch) to logits [B, T, V]."""
    model_def = parameters.abstract(config)[0]
    return jax.jit(lambda params, batch: model_def.merge(params)(batch))


def argmax_of_packed_row(
    params: dict, example: Example, answers: list[list[int]], config: VLMConfig = CONFIG
) -> list[list[int]]:
    """At the places of the answers' tokens, and of one more: what the full forward pass over one training row with all continuations
    takes."""
    segment_tokenizer = SegmentTokenizer(TOKENIZER, config.visual_tokens)
    prefix = segment_tokenizer.prefix(example.prefix)
    questions = [segment_tokenizer.prefix(continuation) for continuation in example.continuations]
    shape = RowShape(480, 2, config.visual_tokens, config.vision.image_size, TOKENIZER.pad)
    writer = RowWriter(shape, lambda image: image.source)
    segment = writer.write(prefix)[0] if len(prefix.tokens) else 0
    places = []
    for question, answer in zip(questions, answers, strict=True):
        written, _ = writer.write(
            continued(question, answer), prefix=segment, start=len(prefix.tokens)
        )
        first = np.flatnonzero(writer.row.segment_ids == written)[0] + len(question.tokens) - 1
        places.append(range(first, first + len(answer) + 1))
    logits = np.asarray(full_pass(config)(params, stack([writer.row])))[
        0, :, : TOKENIZER.vocabulary
    ]
    return [[int(logits[place].argmax()) for place in where] for where in places]


def check(
    params: dict, example: Example, answers: list[list[int]], config: VLMConfig = CONFIG
) -> None:
    """Every generated token is the full pass's, and an answer that ended early ended where that one ends it."""
    for answer, expected in zip(
        answers, argmax_of_packed_row(params, example, answers, config), strict=True
    ):
        assert answer == expected[: len(answer)]
        assert len(answer) == LONGEST or expected[len(answer)] == TOKENIZER.eos


def ask(*questions: str, prefix: tuple = (), template: str = "plain", name: str = "x") -> Example:
    return Example(
        prefix, tuple(find_template(template).prompt(question) for question in questions), name
    )


ABOUT_ONE_IMAGE = ask(*QUESTIONS, prefix=(image(0),))


@pytest.fixture(scope="module")
def plain_answers(params: dict) -> list[list[int]]:
    """What the model says about one image."""
    return make_generator().answer_tokens(params, [ABOUT_ONE_IMAGE])[0]


def test_many_questions_per_image_equal_the_packed_row(params: dict) -> None:
    # Batches of 4 questions: two images share one, and one image needs two.
    examples = [ask(*QUESTIONS[:number], prefix=(image(number),)) for number in (3, 1, 5, 2)]
    answers = make_generator().answer_tokens(params, examples)
    for example, of_example in zip(examples, answers, strict=True):
        check(params, example, of_example)
    flat = [tuple(answer) for of_example in answers for answer in of_example]
    assert len(set(flat)) > 6, "the model tells questions and images apart"
    assert {len(answer) for answer in flat} > {LONGEST}, "some answers end early"


def test_prefixes_of_different_lengths_and_no_image(params: dict) -> None:
    context = (Special("bos"), Text("the image of one circle"))
    examples = [
        ask(*QUESTIONS[:2], prefix=(image(0), *context)),
        ask(QUESTIONS[2]),
        ask(*QUESTIONS[3:], prefix=context),
        ask(QUESTIONS[0], prefix=(image(1), Text("and"), image(2))),
    ]
    for example, answers in zip(
        examples, make_generator().answer_tokens(params, examples), strict=True
    ):
        check(params, example, answers)


def test_text_alone_needs_no_image(params: dict) -> None:
    example = ask(*QUESTIONS)
    check(params, example, make_generator(batch_size=2).answer_tokens(params, [example])[0])


def test_images_inside_a_conversation(params: dict) -> None:
    template = find_template("vicuna_v1")
    turns = (
        Turn("user", (image(4), Text("\nwhat shape?"))),
        Turn("assistant", (Text("a square"),)),
        Turn("user", (Text("what color?"),)),
    )
    example = Example((), (template.conversation(turns), template.prompt("what color?")), "talk")
    check(params, example, make_generator(template="vicuna_v1").answer_tokens(params, [example])[0])


def test_continuations_with_images_behind_a_shared_prefix(params: dict) -> None:
    continuations = (
        (image(0), Text(QUESTIONS[0])),
        (Text(QUESTIONS[1]),),
        (Text("and"), image(1), Text(QUESTIONS[2])),
    )
    example = Example((Special("bos"), Text("a red circle two three")), continuations, "mixed")
    answers = make_generator().answer_tokens(params, [example])[0]
    check(params, example, answers)
    alone = make_generator().answer_tokens(
        params, [Example((), continuations, "without its prefix")]
    )[0]
    assert all(one != other for one, other in zip(answers, alone, strict=True))


def test_low_rank_updates_are_used(params: dict, plain_answers: list[list[int]]) -> None:
    config = make_config(lora=LoRAConfig(rank=2))
    rng = np.random.default_rng(0)
    shapes = {
        path: leaf.shape
        for path, leaf in parameters.abstract(config)[1].items()
        if path not in params
    }
    assert all(path.endswith(("lora_a", "lora_b")) for path in shapes)
    trained = params | {
        path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in shapes.items()
    }
    answers = make_generator(config).answer_tokens(trained, [ABOUT_ONE_IMAGE])[0]
    check(trained, ABOUT_ONE_IMAGE, answers, config)
    assert answers != plain_answers


def test_unrolled_layers_keep_their_caches_apart_and_answer_the_same(
    params: dict, plain_answers: list[list[int]]
) -> None:
    unrolled = make_generator(make_config(unroll=2))
    answers = unrolled.answer_tokens(params, [ABOUT_ONE_IMAGE])[0]
    check(params, ABOUT_ONE_IMAGE, answers)
    assert answers == plain_answers


@pytest.mark.parametrize("batch_size", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_answers_do_not_depend_on_the_batch(params: dict, batch_size: int) -> None:
    examples = [ask(*QUESTIONS, prefix=(image(number),)) for number in range(3)]
    one, other = (make_generator(batch_size=size) for size in (1, batch_size))
    assert one.answer_tokens(params, examples) == other.answer_tokens(params, examples)


def test_answers_are_text(params: dict) -> None:
    head = np.zeros((16, CONFIG.decoder.vocabulary), np.float32)
    say = TOKENIZER.encode(" yes")[0]
    bias = params | {"decoder/norm/scale": np.zeros(16, np.float32), "decoder/lm_head/kernel": head}
    prompt = find_template("plain").prompt(QUESTIONS[2])
    # All logits equal: pad, which is no text.
    assert make_generator().answer(bias, (image(0),), prompt) == ""
    # The first hidden unit is always 1 after this norm when the embedding table is constant.
    table = np.tile(np.eye(16, dtype=np.float32)[0], (CONFIG.decoder.vocabulary, 1))
    head[0, say] = 1.0
    constant = {
        path: np.zeros_like(value) if path.startswith("decoder/layers") else value
        for path, value in params.items()
    }
    constant |= {"decoder/embedding": table, "decoder/lm_head/kernel": head}
    said = make_generator().answer(constant, (image(0),), prompt)
    assert said == " ".join(["yes"] * LONGEST)


def test_ids_that_mean_nothing_are_never_taken(params: dict) -> None:
    kernel = np.array(params["decoder/lm_head/kernel"])
    kernel[:, TOKENIZER.vocabulary :] *= 1e3  # the head is wider than the tokenizer
    answers = make_generator().answer_tokens(
        params | {"decoder/lm_head/kernel": kernel}, [ABOUT_ONE_IMAGE]
    )
    assert max(max(answer, default=0) for answer in answers[0]) < TOKENIZER.vocabulary


def test_the_templates_own_end_stops_an_answer(params: dict) -> None:
    end = TOKENIZER.special("<|eot_id|>")
    kernel = np.zeros_like(params["decoder/lm_head/kernel"])
    kernel[:, end] = np.asarray(params["decoder/lm_head/kernel"])[:, end]
    example = ask("what shape?", prefix=(image(0),), template="llama3")
    for sign in (1, -1):  # one of the two makes the end the likeliest token
        ended = make_generator(template="llama3").answer_tokens(
            params | {"decoder/lm_head/kernel": sign * kernel}, [example]
        )[0][0]
        plain = make_generator(template="plain").answer_tokens(
            params | {"decoder/lm_head/kernel": sign * kernel}, [example]
        )[0][0]
        if end in plain:
            assert ended == plain[: plain.index(end)]
            return
    pytest.fail("the end was never the likeliest token")


def test_stops_between_batches(params: dict) -> None:
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(Preempted):
        make_generator(batch_size=1).answer_tokens(
            params, [ABOUT_ONE_IMAGE], should_stop=should_stop
        )
    assert len(asked) == 3


def test_one_program_for_all_batches(params: dict) -> None:
    model_def, merged = parameters.abstract(CONFIG)[0], []

    class Counting:
        """A program is traced once, and merges the model then."""

        def merge(self, params: dict) -> Any:
            merged.append(params)
            return model_def.merge(params)

    generator = Generator(Counting(), CONFIG, TOKENIZER, batch_size=4)
    examples = [ask(*QUESTIONS[: 1 + number % 5], prefix=(image(number),)) for number in range(8)]
    generator.answer_tokens(params, examples)
    assert len(merged) == 2  # one program reads prefixes, one answers


def test_wrong_input(params: dict, tmp_path: object) -> None:
    with pytest.raises(InputError, match="missing image"):
        make_generator().answer(params, (Image(f"{tmp_path}/none.png"),), (Text("what?"),))
    with pytest.raises(InputError, match="ends without text"):
        make_generator().answer(params, (), (image(0),))
    with pytest.raises(InputError, match="must be positive"):
        make_generator(batch_size=0)
    assert make_generator().answer_all(params, []) == []
