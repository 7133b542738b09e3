"""Chat templates against `apply_chat_template` of transformers: the same ids for conversations, loss on what the assistant says."""

import json

import pytest

from mmjax.data.examples import Image, Text, Turn
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import open_tokenizer, tokenise

STYLES = (
    "chatml",
    "llama3",
    "thinking",
    "generation",
    "inst",
    "inst_legacy",
    "generation_inst",
    "vicuna",
    "vicuna_prompting",
    "parts",
    "blocks",
    "blocks_always",
    "blocks_legacy",
    "inst_always",
)
THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture
def style(reference, tmp_path):
    """Of a style by name: the tokenizer, the template, and (turns, what transformers makes of them) of each conversation."""
    arrays = reference("chat_templates")

    def read(name, labels=True):
        content = json.loads(arrays[f"style:{name}"].tobytes())
        (tmp_path / "tokenizer.json").write_bytes(
            arrays[f"tokenizer:{content['tokenizer']}"].tobytes()
        )
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content["config"]))
        tokenizer = open_tokenizer(tmp_path)
        found = [
            ([Turn(role, said(parts)) for role, parts in result["turns"]], result)
            for result in content["results"]
        ]
        return tokenizer, find_template("chat", tokenizer, labels=labels), found

    return read


def said(parts):
    """What a turn says: a text, or parts of which None is an image."""
    return tuple(
        Image(b"") if part is None else Text(part)
        for part in ([parts] if isinstance(parts, str) else parts)
    )


@pytest.mark.parametrize("name", STYLES)
def test_the_same_ids(style, name):
    tokenizer, template, conversations = style(name)
    assert len(conversations) in (5, 10)
    for turns, result in conversations:
        ids = tokenise(template.conversation(turns), tokenizer, 1).tokens.tolist()
        if (
            name == "vicuna" and turns[-1].role == "user"
        ):  # transformers leaves such a prompt without its end
            assert ids[: len(result["ids"]) - 1] == result["ids"][:-1] and tokenizer.decode(
                ids
            ).endswith(" ASSISTANT:")
        else:
            assert ids == result["ids"]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("llava", False),
        ("llava_legacy", False),
        ("inline", False),
        ("inline", True),
        ("generation", False),
    ],
)
def test_the_same_ids_with_images_and_without_labels(style, name, labels):
    """Of LLaVA's processor, which has four visual tokens for each image."""
    tokenizer, template, conversations = style(name, labels)
    assert len(conversations) in (5, 10)
    for turns, result in conversations:
        piece = tokenise(template.conversation(turns), tokenizer, 4)
        assert piece.tokens.tolist() == result["ids"]
        assert len(piece.images) == sum(
            isinstance(part, Image) for turn in turns for part in turn.content
        )
        assert piece.loss.any() == (labels and any(turn.role == "assistant" for turn in turns))


@pytest.mark.parametrize("name", STYLES)
def test_what_carries_loss(style, name):
    """All that the assistant says, with the token that ends it, and nothing that the generation prompt says already."""
    tokenizer, template, conversations = style(name)
    stop = tokenizer.special(template.stop)
    for turns, _ in conversations:
        piece = tokenise(template.conversation(turns), tokenizer, 1)
        said, spans = [], piece.loss.tolist()
        for place, (token, loss) in enumerate(zip(piece.tokens.tolist(), spans, strict=True)):
            if loss and not (place and spans[place - 1]):
                said.append([])
            if loss:
                said[-1].append(token)
        answers = [turn.content[0].text for turn in turns if turn.role == "assistant"]
        assert all(ids[-1] == stop and stop not in ids[:-1] for ids in said)
        found = [tokenizer.decode(ids).removeprefix(THOUGHT).strip() for ids in said]
        assert found == [answer.strip() for answer in answers]


@pytest.mark.parametrize("name", ["generation", "generation_inst"])
def test_marked_spans(style, name):
    """Loss stands where transformers says that the template generates; also on a token of the space before, if no prompt has it."""
    tokenizer, template, conversations = style(name)
    for turns, result in conversations:
        piece = tokenise(template.conversation(turns), tokenizer, 1)
        differing = [
            (token, loss)
            for token, loss, mask in zip(
                piece.tokens.tolist(), piece.loss.tolist(), result["mask"], strict=True
            )
            if loss != mask
        ]
        assert name == "generation_inst" or not differing
        assert all(loss and tokenizer.decode([token]) == " " for token, loss in differing)


def test_a_thought_before_the_last_answer_is_learned(style):
    """The generation prompt ends before it, so that the model has to write it."""
    tokenizer, template, _ = style("thinking")
    piece = tokenise(template.question("what?", "red"), tokenizer, 1)
    assert tokenizer.decode(piece.tokens[piece.loss]) == THOUGHT + "red"
