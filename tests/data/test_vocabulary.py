"""Tokenizers and vocabularies that differ: harmless where no row has the tokens that the decoder lacks, refused elsewhere."""

import dataclasses
import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from mmjax.config.load import recipe_from
from mmjax.data.text.tokenizer import WordTokenizer, open_tokenizer
from mmjax.data.text.vocabulary import fit
from mmjax.errors import InputError
from mmjax.recipe.recipe import Recipe
from tests.squares import get_config

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = 256 + 1  # bytes, and what ends texts


@pytest.fixture
def recipe():
    recipe: Recipe = recipe_from(get_config().to_dict(), name="squares")

    def with_vocabulary(vocabulary: int | None, template: str = "plain") -> Recipe:
        stage = recipe.stages["squares"]
        decoder = dataclasses.replace(stage.model.decoder, vocabulary=vocabulary)
        model = dataclasses.replace(stage.model, decoder=decoder)
        data = dataclasses.replace(stage.data, template=template)
        stage = dataclasses.replace(stage, model=model, data=data)
        return dataclasses.replace(recipe, stages={"squares": stage})

    return with_vocabulary


@pytest.fixture
def published(tmp_path):
    """A tokenizer of bytes with more tokens in this order, of which some are special."""

    def make(*specials: str, others: tuple[str, ...] = (), **settings: str):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = tokenizers.Tokenizer(
            models.BPE({character: index for index, character in enumerate(alphabet)}, [])
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.add_special_tokens(["<|endoftext|>", *specials])
        tokenizer.add_tokens(list(others))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        named = {"eos_token": "<|endoftext|>", "chat_template": CHAT} | settings
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
        return open_tokenizer(tmp_path)

    return make


def test_padding_may_lie_beyond_the_vocabulary(recipe, published):
    tokenizer = published("<pad>", pad_token="<pad>")
    assert tokenizer.pad == TEXT
    assert fit(recipe(TEXT), tokenizer) == recipe(TEXT)


def test_so_may_every_special_token_that_no_row_has(recipe, published):
    tokenizer = published("<|im_start|>", "<|im_end|>", "<image>", "<mask>", "<pad>")
    fit(recipe(TEXT), tokenizer)
    fit(recipe(TEXT + 2, "chat"), tokenizer)
    for vocabulary, template in ((TEXT - 1, "plain"), (TEXT + 1, "chat")):
        with pytest.raises(InputError, match=f"at least the {vocabulary + 1} tokens"):
            fit(recipe(vocabulary, template), tokenizer)


def test_tokens_that_a_template_writes_by_parts_of_their_names_are_needed(recipe, published):
    parts = CHAT.replace("<|im_start|>", "{{ '<|' ~ m.role ~ '|>' }}", 1)
    tokenizer = published("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>")
    fit(recipe(TEXT + 2, "chat"), tokenizer)
    tokenizer.chat_template = parts
    with pytest.raises(InputError, match=f"at least the {TEXT + 4} tokens"):
        fit(recipe(TEXT + 2, "chat"), tokenizer)


def test_a_token_that_texts_may_have_is_needed(recipe, published):
    tokenizer = published("<pad>", others=("<think>",))
    with pytest.raises(InputError, match=f"at least the {TEXT + 2} tokens"):
        fit(recipe(TEXT), tokenizer)


def test_a_decoder_without_a_number_gets_room_for_all_of_them(recipe, published):
    tokenizer = published("<pad>", pad_token="<pad>")
    assert fit(recipe(None), tokenizer).stages["squares"].model.decoder.vocabulary == 264


def test_of_a_tokenizer_of_words_all_are_needed(recipe):
    tokenizer = WordTokenizer.build(["a b"])
    fit(recipe(tokenizer.vocabulary), tokenizer)
    with pytest.raises(InputError, match="must be at least"):
        fit(recipe(tokenizer.vocabulary - 1), tokenizer)
