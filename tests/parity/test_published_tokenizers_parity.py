"""The tokenizers of real models, where their files are in the cache: the same ids as the libraries that own them."""

import json
import pathlib

import pytest

from mmjax.base import host
from mmjax.data.examples import Text, Turn
from mmjax.data.text.templates import find_template
from mmjax.data.text.tokenizer import open_tokenizer, tokenise

CONTENT = json.loads(
    pathlib.Path(__file__).with_name("published_ids.json").read_text(encoding="utf-8")
)
TEXTS = CONTENT["texts"]


def in_cache(place: str, how: str) -> pathlib.Path:
    path = host.cache_dir() / place
    if not path.exists():
        pytest.skip(f"{path} is missing; {how}")
    return path


@pytest.fixture(scope="module")
def smollm2():
    return open_tokenizer(
        in_cache(
            "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "python -m mmjax.fetch smollm2 brings it"
        )
    )


@pytest.fixture(scope="module")
def llama3():
    return open_tokenizer(
        in_cache(
            "llama3/tokenizer.model",
            "it is llama_models/llama3/tokenizer.model of the package llama-models 0.3.0",
        )
    )


def test_recorded_ids_of_smollm2_differ_by_the_rule_for_digits_alone():
    """Transformers knows no pre-tokenizer "smollm" and cuts as GPT-2 does."""
    smollm2 = CONTENT["smollm2"]
    differing = [
        text
        for text, one, other in zip(TEXTS, smollm2["apart"], smollm2["ids"], strict=True)
        if one != other
    ]
    assert len(differing) < len(TEXTS) / 2 and all(
        any(letter.isnumeric() for letter in text) for text in differing
    )


def test_smollm2(smollm2):
    ids = [smollm2.encode(text) for text in TEXTS]
    assert ids == CONTENT["smollm2"]["ids"]
    assert [smollm2.decode(one) for one in ids] == TEXTS
    assert (smollm2.bos, smollm2.eos, smollm2.pad, smollm2.vocabulary) == (1, 2, 2, 49152 + 1)


def test_conversations_of_smollm2(smollm2):
    """With its own system turn where none is given."""
    template = find_template("chat", smollm2)
    assert template.stop == "<|im_end|>"
    for messages, ids in zip(
        CONTENT["smollm2"]["messages"], CONTENT["smollm2"]["chats"], strict=True
    ):
        turns = [Turn(message["role"], (Text(message["content"]),)) for message in messages]
        piece = tokenise(template.conversation(turns), smollm2, 1)
        assert piece.tokens.tolist() == ids
        said = "".join(message["content"] for message in messages if message["role"] == "assistant")
        assert smollm2.decode(piece.tokens[piece.loss]) == said


def test_llama3(llama3):
    ids = [llama3.encode(text) for text in TEXTS]
    assert ids == CONTENT["llama3"]["ids"]
    assert [llama3.decode(one) for one in ids] == TEXTS


def test_special_tokens_of_llama3(llama3):
    assert [llama3.bos, *llama3.encode("Hello world! A photo of a dog.")] == [
        128000,
        9906,
        1917,
        0,
        362,
        6685,
        315,
        264,
        5679,
        13,
    ]
    names = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|image|>",
    )
    assert [llama3.special(name) for name in names] == [
        128000,
        128001,
        128006,
        128007,
        128008,
        128009,
        128011,
    ]
    assert llama3.special("<|reserved_special_token_245|>") == 128255 == llama3.vocabulary - 1
    assert find_template("llama3", llama3).stop == "<|eot_id|>"
