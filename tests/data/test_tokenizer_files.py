"""Published tokenizers by path: which file of a folder counts, and that damage of every kind is one clear message."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from mmjax.data.text.gguf_tokenizer import from_fields
from mmjax.data.text.tokenizer import open_tokenizer
from mmjax.data.text.tokenizer_files import keep_tokenizer, read_tokenizer, write_tokenizer
from mmjax.data.text.tokenizer_json import BYTE_CHARACTERS
from mmjax.errors import InputError

NORMAL, CONTROL = 1, 3
WORDS = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "</s>"},
}


def fields(**changes):
    """Fields of a small byte-level tokenizer; None takes one away."""
    tokens = ["<s>", "</s>", *BYTE_CHARACTERS, "ab"]
    named = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [CONTROL] * 2 + [NORMAL] * 257,
        "merges": ["a b"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | changes
    return {f"tokenizer.ggml.{name}": value for name, value in named.items() if value is not None}


def gguf(values):
    """A GGUF file of texts, whole numbers and lists of them, without tensors."""

    def text(value):
        return len(value.encode()).to_bytes(8, "little") + value.encode()

    def typed(value):
        if isinstance(value, str):
            return 8, text(value)
        if isinstance(value, int):
            return 4, value.to_bytes(4, "little")
        kinds = [typed(item) for item in value]
        return 9, kinds[0][0].to_bytes(4, "little") + len(kinds).to_bytes(8, "little") + b"".join(
            data for _, data in kinds
        )

    header = (
        b"GGUF"
        + (3).to_bytes(4, "little")
        + (0).to_bytes(8, "little")
        + len(values).to_bytes(8, "little")
    )
    pairs = [(name, typed(value)) for name, value in values.items()]
    return header + b"".join(
        text(name) + kind.to_bytes(4, "little") + data for name, (kind, data) in pairs
    )


def sentence_piece(**changes):
    """A SentencePiece model of a few pieces."""
    model = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in [
        ("<unk>", 0, 2),
        ("<s>", 0, 3),
        ("</s>", 0, 3),
        ("a", -2, 1),
        ("▁", -3, 1),
        ("▁a", -1, 1),
    ]:
        model.pieces.add(piece=piece, score=score, type=kind)
    for piece in changes.pop("more", ()):
        model.pieces.add(piece=piece, score=-1, type=1)
    model.trainer_spec.model_type = changes.pop("model_type", 2)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    for name, value in changes.items():
        setattr(model.normalizer_spec, name, value)
    return model.SerializeToString()


def tiktoken(*more):
    """Ranks of all bytes, and of more tokens."""
    tokens = [*(bytes([byte]) for byte in range(256)), *more]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def in_byte_characters(data):
    """Bytes as a byte-level vocabulary spells them."""
    return "".join(BYTE_CHARACTERS[byte] for byte in data)


def test_every_byte_has_a_printable_character_of_its_own():
    assert len(set(BYTE_CHARACTERS)) == 256 and all(
        character.isprintable() and not character.isspace() for character in BYTE_CHARACTERS
    )
    assert in_byte_characters(b"a \n\xc3") == "aĠĊÃ"


def test_a_gguf_file_alone_or_in_its_folder(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(fields() | {"tokenizer.chat_template": "{{ messages }}"}))
    for where in (path, tmp_path):
        tokenizer = open_tokenizer(where)
        assert (
            tokenizer.encode("ab a") == [258, 2 + 0x20, 2 + ord("a")]
            and tokenizer.decode(tokenizer.encode("ab a")) == "ab a"
        )
        assert (tokenizer.bos, tokenizer.eos, tokenizer.image) == (0, 1, 259)
        assert (
            tokenizer.names == {"bos_token": "<s>", "eos_token": "</s>"}
            and tokenizer.chat_template == "{{ messages }}"
        )
    assert pickle.loads(pickle.dumps(tokenizer)).encode("ab") == [258]


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["1", "2", "3", "4", "½", "  ", "5"]),
        ("qwen2", ["1", "2", "3", "4", "½", " ", " ", "5"]),
        ("llama-bpe", ["123", "4½", " ", " ", "5"]),
    ],
)
def test_how_digits_are_cut(tmp_path, pre, pieces):
    """Although they could be merged."""
    longer = ["12", "123", "1234", "4½", "  ", "½"]
    vocabulary = [
        "<s>",
        "</s>",
        *BYTE_CHARACTERS,
        "34",
        *(in_byte_characters(token.encode()) for token in longer),
    ]
    half, space = (in_byte_characters(text.encode()) for text in ("½", " "))
    merges = ["1 2", "12 3", "123 4", " ".join(half), f"4 {half}", f"{space} {space}", "3 4"]
    values = fields(
        pre=pre,
        tokens=vocabulary,
        token_type=[CONTROL] * 2 + [NORMAL] * (len(vocabulary) - 2),
        merges=merges,
    )
    (tmp_path / "model.gguf").write_bytes(gguf(values))
    tokenizer = open_tokenizer(tmp_path)
    assert [tokenizer.decode([index]) for index in tokenizer.encode("1234½  5")] == pieces


def test_the_highest_score_is_merged_first_and_control_tokens_are_not_merged():
    tokens, scores = (
        ["<unk>", "</s>", "a", "b", "c", "ab", "bc", "</", "s>"],
        [0, 0, -9, -9, -9, -5, -4, -1, -1],
    )
    kinds = [2, CONTROL, *[NORMAL] * 7]
    content, _ = from_fields(
        fields(
            model="llama",
            pre=None,
            tokens=tokens,
            token_type=kinds,
            scores=[float(score) for score in scores],
            merges=None,
        ),
        Path("here"),
    )
    assert content["model"]["merges"] == [["b", "c"], ["a", "b"]]


def test_tokenizer_json_comes_before_tokenizer_model_before_gguf(tmp_path):
    (tmp_path / "b.gguf").write_bytes(gguf(fields()))
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece())
    assert read_tokenizer(tmp_path)[0].name == "tokenizer.model"
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    assert read_tokenizer(tmp_path)[0].name == "tokenizer.json"
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "c.gguf").write_bytes(b"")
    with pytest.raises(InputError, match="2 GGUF files"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "config"}}, "config"),
        (
            {"tokenizer_config.json": {"chat_template": "config"}, "chat_template.jinja": "file"},
            "file",
        ),
        ({"chat_template.json": {"chat_template": "processor"}}, "processor"),
        (
            {
                "tokenizer_config.json": {"chat_template": "config"},
                "chat_template.json": {"chat_template": "processor"},
            },
            "config",
        ),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tools", "template": "a"},
                        {"name": "default", "template": "b"},
                    ]
                }
            },
            "b",
        ),
        ({"tokenizer_config.json": {"chat_template": [{"name": "tools", "template": "a"}]}}, None),
    ],
)
def test_where_a_chat_template_stands(tmp_path, files, found):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert open_tokenizer(tmp_path).chat_template == found


def test_sentencepiece_says_where_it_puts_spaces(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentence_piece())
    assert open_tokenizer(path).prefix_space == "first" and open_tokenizer(path).encode("a a") == [
        3,
        5,
    ]
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": true}')
    assert open_tokenizer(path).prefix_space == "again" and open_tokenizer(path).encode("a a") == [
        3,
        5,
    ]
    path.write_bytes(sentence_piece(add_dummy_prefix=False))
    assert open_tokenizer(path).prefix_space == "never"


def test_control_pieces_of_sentencepiece_do_not_come_from_text(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece())
    tokenizer = open_tokenizer(tmp_path)
    assert 2 not in tokenizer.encode("a</s>") and tokenizer.special("</s>") == 2 == tokenizer.eos


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sentence_piece(model_type=3), "of words; mmjax reads BPE and Unigram"),
        (sentence_piece(precompiled_charsmap=b"abc", name="nmt_nfkc"), "nmt_nfkc"),
        (sentence_piece(remove_extra_whitespaces=True), "changes texts"),
        (sentence_piece()[:-9], "cannot be read"),
        (sentence_piece(more=["b", "b"]), "damaged"),
        (sentence_piece().replace(b"\n\x01a", b"\n\x01\xff"), "damaged"),
        (b"", "no SentencePiece model"),
        (tiktoken(), "256 tokens, Llama 3 has 128000"),
        (tiktoken(b"ab", b"ab"), "damaged"),
        (tiktoken()[7:], "damaged"),
        (tiktoken() + b"x", "cannot be read"),
        (tiktoken() + b"YWI= many\n", "cannot be read"),
    ],
)
def test_unusable_models_say_why(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_tokenizer(tmp_path)


def test_long_pieces_are_not_taken_apart(tmp_path):
    """Every part of a piece is looked up, so that the work is the square of its length."""
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece(more=["a" * 10_000]))
    with pytest.raises(InputError, match="longer than those of any tokenizer"):
        open_tokenizer(tmp_path)
    settings = {"added_tokens_decoder": {"257": {"content": "</s>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer.model").write_bytes(tiktoken(b"a" * 10_000))
    with pytest.raises(InputError, match="longer than those of any tokenizer"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_a_unigram_model_encodes_as_sentencepiece_does(tmp_path, byte_fallback):
    written = io.BytesIO()
    lines = ["is there a red circle? yes it is there.", "hello there, general <tool> naïve"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4),
        model_writer=written,
        model_type="unigram",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<tool>"],
        num_threads=1,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    tokenizer = open_tokenizer(tmp_path)
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    model.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in [*lines, "", "  a  red\n\ncircle ", "unseen: ☃ 这是", "is</s>there<s>", "<tool>x"]:
        ids = tokenizer.encode(text)
        assert not {tokenizer.bos, tokenizer.eos} & set(ids)
        if byte_fallback or "</s>" not in text:  # else what is unknown is cut within the name
            assert ids == processor.encode(text)
        if byte_fallback:
            assert tokenizer.decode(ids) == text


def test_a_tokenizer_json_is_read_as_it_stands(tmp_path):
    """Whatever class is named beside it. SmolLM2 names GPT2Tokenizer, by which transformers would cut digits in another way."""
    model = {"type": "BPE", "vocab": {"</s>": 0, "1": 1, "2": 2, "12": 3}, "merges": [["1", "2"]]}
    digits = {"type": "Digits", "individual_digits": True}
    content = WORDS | {"model": model, "pre_tokenizer": digits}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for name in ("GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "NoSuchTokenizer"):
        settings = {"tokenizer_class": name, "auto_map": {"AutoTokenizer": ["a.B", "a.C"]}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        assert open_tokenizer(tmp_path).encode("12") == [1, 2]


def test_roles_and_tokens_of_older_files(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "a"}, "bos_token": "[BOS]"})
    )
    with pytest.raises(InputError, match=r"names '\[BOS\]' as bos_token, but there is no such"):
        open_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"[BOS]": 2}')
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.eos, tokenizer.bos, tokenizer.vocabulary) == (1, 2, 4)


def test_a_token_for_padding_may_be_new(tmp_path):
    """As in transformers: its id is behind all others, and is never looked at."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.pad, tokenizer.vocabulary) == (2, 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_special_tokens": [f"<{number}>" for number in range(3000)]},
        {f"a{number}_token": f"<{number}>" for number in range(3000)},
        {"added_tokens_decoder": {str(2 + n): {"content": f"<{n}>"} for n in range(131_072)}},
        {
            "extra_special_tokens": [f"<{number}>" for number in range(1000)],
            "added_tokens_decoder": {str(2 + n): {"content": f"[{n}]"} for n in range(3000)},
        },
        {"x": [[[]] * 200_000]},
    ],
    ids=["named", "roles", "added", "both", "parts"],
)
def test_settings_beyond_all_measure(tmp_path, settings):
    """Transformers would compare each special token with each added one."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="any tokenizer"):
        open_tokenizer(tmp_path)


def test_ids_far_behind_the_ranks_are_not_filled_up(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiktoken())
    settings = {"added_tokens_decoder": {"2000000000": {"content": "</s>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="any tokenizer"):
        open_tokenizer(tmp_path)


def test_no_copy_of_a_tiktoken_file_is_kept_or_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tokenizer.model"
    settings = {"added_tokens_decoder": {"257": {"content": "</s>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    for token in (b"ab", b"cd"):
        path.write_bytes(tiktoken(token))
        assert open_tokenizer(path).encode(token.decode()) == [256]
    assert not (tmp_path / "cache").exists()


_OPENS = """
import sys
from mmjax.data.text.tokenizer import open_tokenizer
from mmjax.errors import InputError
for folder in sys.argv[1:]:
    try:
        open_tokenizer(folder)
    except InputError:
        assert folder.endswith("damaged")
"""


def test_nothing_is_printed(tmp_path):
    """Nor that PyTorch is missing, nor what transformers tries with a damaged file."""
    for name in ("whole", "damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(sentence_piece())
    (tmp_path / "damaged" / "added_tokens.json").write_text('{"x": "y"}')
    command = [sys.executable, "-c", _OPENS, str(tmp_path / "whole"), str(tmp_path / "damaged")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout + done.stderr == ""


def test_a_written_tokenizer_reads_the_same(tmp_path):
    values = fields() | {"tokenizer.chat_template": "{{ messages }}"}
    (tmp_path / "model.gguf").write_bytes(gguf(values))
    (tmp_path / "written").mkdir()
    write_tokenizer(tmp_path, tmp_path / "written")
    settings = json.loads((tmp_path / "written" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows it, too
    names = sorted(path.name for path in (tmp_path / "written").iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]
    one, other = open_tokenizer(tmp_path), open_tokenizer(tmp_path / "written")
    for name in ("vocabulary", "bos", "eos", "pad", "image", "names", "special_tokens"):
        assert getattr(one, name) == getattr(other, name)
    assert one.chat_template == other.chat_template and other.encode("ab a") == one.encode("ab a")


def test_special_tokens_of_another_tiktoken_model_are_named_beside_it(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiktoken(b"ab"))
    settings = {"added_tokens_decoder": {"257": {"content": "<eos>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = open_tokenizer(tmp_path)
    assert (
        tokenizer.eos == 257
        and tokenizer.encode("ab<eos>")[0] == 256
        and 257 not in tokenizer.encode("ab<eos>")
    )
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"a": 3}}')
    with pytest.raises(InputError, match="added_tokens_decoder"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pre": "tekken"},
            "'tekken', which mmjax does not know; it knows 'smollm', 'llama-bpe', 'qwen2'",
        ),
        ({"pre": None}, "'default'"),
        ({"model": "t5"}, "kind 't5'"),
        ({"model": None}, "has no tokenizer"),
        ({"model": 3}, "damaged"),
        ({"merges": ["a b c"]}, "no pair"),
        ({"merges": ["a xyz"]}, "not a tokenizer"),
        ({"tokens": ["a", "a"]}, "distinct"),
        ({"token_type": [1]}, "as many as their types"),
        ({"eos_token_id": 99999}, "99999"),
        (
            {"eos_token_id": None, "tokens": ["<x>", "<y>", *BYTE_CHARACTERS, "ab"]},
            "no end-of-sequence token",
        ),
        ({"model": "llama", "merges": None}, "tokenizer.ggml.scores"),
    ],
)
def test_unusable_gguf_tokenizers_say_why(tmp_path, changes, message):
    (tmp_path / "model.gguf").write_bytes(gguf(fields(**changes)))
    with pytest.raises(InputError, match=message):
        open_tokenizer(tmp_path)


STRANGE = [True, 0, 1.5, "x", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("value", ["abc", [1], True, 1.5, {"a": 1}])
@pytest.mark.parametrize(
    "name", ["bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id"]
)
def test_roles_of_a_strange_type(name, value):
    with pytest.raises(InputError, match=f"damaged: tokenizer.ggml.{name} is "):
        from_fields(fields(**{name: value}), Path("here"))


def test_a_chat_template_of_a_strange_type():
    with pytest.raises(InputError, match=r"damaged: tokenizer.chat_template is '\[1\]'"):
        from_fields(fields() | {"tokenizer.chat_template": [1]}, Path("here"))


def opened_or_refused(folder):
    """What cannot be used is refused in one line."""
    try:
        open_tokenizer(folder).encode("a b")
    except InputError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize(
    "value",
    [*STRANGE, {"type": "Sequence"}, {"type": "Sequence", "normalizers": 3}, {"type": "Metaspace"}],
    ids=str,
)
@pytest.mark.parametrize(
    "name", ["normalizer", "pre_tokenizer", "decoder", "added_tokens", "model"]
)
def test_parts_of_a_strange_type(tmp_path, name, value):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    assert opened_or_refused(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS | {name: value}))
    opened_or_refused(tmp_path)


@pytest.mark.parametrize(
    "value", [True, 0, 1.5, "x", [], [1], {"content": 3}, {"content": ["</s>"]}], ids=str
)
@pytest.mark.parametrize("role", ["bos", "eos", "pad", "unk"])
def test_settings_of_a_strange_type(tmp_path, role, value):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({f"{role}_token": value}))
    assert opened_or_refused(tmp_path) == (role in ("unk", "pad") and value == "x")


def test_names_of_templates_of_a_strange_type(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": [1], "template": "a"}]})
    )
    assert not opened_or_refused(tmp_path)


def test_an_unknown_token_that_is_none_is_said_when_it_is_needed(tmp_path):
    model = {"type": "BPE", "vocab": {"</s>": 0, "a": 1}, "merges": [], "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    assert open_tokenizer(tmp_path).encode("a") == [1]
    with pytest.raises(InputError, match="cannot encode 'b'"):
        open_tokenizer(tmp_path).encode("b")


anything = st.one_of(
    st.none(),
    st.integers(-5, 300),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=3),
    st.lists(st.text(max_size=3)),
)


@given(
    st.dictionaries(st.sampled_from([name.rpartition(".")[2] for name in fields()]), anything),
    st.sampled_from(["gpt2", "llama"]),
)
@settings(max_examples=150)
def test_damaged_fields_give_a_tokenizer_or_an_input_error(tmp_path_factory, changes, model):
    try:
        content, _ = from_fields(
            fields(**{"model": model} | changes), tmp_path_factory.getbasetemp()
        )
        assert content["model"]["type"] == "BPE"
    except InputError:
        pass


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(
        InputError, match=r"neither tokenizer\.json nor tokenizer\.model nor a GGUF file"
    ):
        open_tokenizer(tmp_path)
    (tmp_path / "model.gguf").write_bytes(gguf(fields())[:100])
    with pytest.raises(InputError, match="ends at byte 100"):
        open_tokenizer(tmp_path)


NAMES = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer.model",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file(tmp_path, name, kind):
    """A pipe would block for ever, a device has no end."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"is not a file|There is no tokenizer file"):
        open_tokenizer(tmp_path / name if name.startswith("tokenizer.") else tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_files_beyond_all_measure(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=f"has {2**40} bytes; that is no "):
        open_tokenizer(tmp_path / name if name.startswith("tokenizer.") else tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n"


@pytest.mark.parametrize("name", [*NAMES, "processor_config.json"])
@pytest.mark.parametrize("kind", ["Git LFS", "git-annex"])
def test_pointers_to_files_that_were_not_fetched(tmp_path, name, kind):
    if name != "tokenizer.model":
        (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "Git LFS":
        (tmp_path / name).write_bytes(LFS)
    else:
        (tmp_path / name).symlink_to(".git/annex/objects/0/0/MD5-s3--0/MD5-s3--0")
    with pytest.raises(InputError, match=f"{name} is a pointer of {kind}, not the file itself"):
        open_tokenizer(tmp_path)


TURN = {"content": "<|turn|>", "special": True}
ADDED = {
    "decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"6": TURN | {"normalized": False}, "7": {"content": "<b>"}}
        }
    },
    "extra": {"tokenizer_config.json": {"extra_special_tokens": ["<|turn|>"]}},
    "role": {"tokenizer_config.json": {"turn_token": "<|turn|>"}},
    "additional": {"tokenizer_config.json": {"additional_special_tokens": ["<|turn|>"]}},
    "map": {
        "special_tokens_map.json": {"additional_special_tokens": ["<|turn|>"]},
        "added_tokens.json": {"<|turn|>": 6},
    },
    "map of objects": {
        "special_tokens_map.json": {"additional_special_tokens": [{"content": "<|turn|>"}]}
    },
}


@pytest.mark.parametrize("files", ADDED.values(), ids=ADDED)
def test_tokens_that_settings_add_to_a_sentencepiece_model(tmp_path, files):
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece())
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.special("<|turn|>") == 6
    assert 6 not in tokenizer.encode("a <|turn|>") and tokenizer.decode([6]) == ""


SPECIAL_BY = {name: files for name, files in ADDED.items() if name != "map"} | {
    "map": {"special_tokens_map.json": {"additional_special_tokens": ["<|turn|>"]}}
}


@pytest.mark.parametrize("files", SPECIAL_BY.values(), ids=SPECIAL_BY)
@pytest.mark.parametrize("where", ["added", "vocabulary"])
def test_a_token_is_special_if_any_file_says_so(tmp_path, files, where):
    added = [] if where == "vocabulary" else [{"id": 2, **TURN, "special": False}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = WORDS | {"added_tokens": [token | flags for token in added]}
    vocabulary = {"</s>": 0, "a": 1} | ({"<|turn|>": 2} if where == "vocabulary" else {})
    content["model"] = WORDS["model"] | {"vocab": vocabulary}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    if where == "added":
        with pytest.raises(InputError, match=r"no special token '<\|turn\|>'"):
            open_tokenizer(tmp_path).special("<|turn|>")
    for name, content in files.items():
        text = json.dumps(content).replace('"6"', '"2"').replace('"7"', '"3"')
        (tmp_path / name).write_text(text)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.special("<|turn|>") == 2
    assert 2 not in tokenizer.encode("<|turn|>") and tokenizer.decode([2]) == ""
    written = tmp_path / "written"
    written.mkdir()
    write_tokenizer(tmp_path, written)
    assert open_tokenizer(written).special("<|turn|>") == 2


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"additional_chat_templates/rag.jinja": "rag", "chat_template.jinja": "file"}, "file"),
        ({"additional_chat_templates/rag.jinja": "rag"}, None),
        ({"processor_config.json": {"chat_template": "processor"}}, "processor"),
        (
            {
                "processor_config.json": {"chat_template": "processor"},
                "chat_template.jinja": "file",
                "tokenizer_config.json": {"chat_template": "config"},
            },
            "processor",
        ),
        # The language model's own stands beside that of the whole model.
        (
            {
                "preprocessor_config.json": {},
                "chat_template.json": {"chat_template": "whole"},
                "tokenizer_config.json": {"chat_template": "config"},
            },
            "whole",
        ),
        (
            {"processor_config.json": {}, "tokenizer_config.json": {"chat_template": "config"}},
            "config",
        ),
    ],
)
def test_where_newer_folders_have_chat_templates(tmp_path, files, found):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    (tmp_path / "additional_chat_templates").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.chat_template == found
    several = any(name.startswith("additional") for name in files)
    assert ("rag" in tokenizer.chat_templates) == several


def test_the_image_token_that_a_processor_names(tmp_path):
    content = WORDS | {"model": WORDS["model"] | {"vocab": {"</s>": 0, "a": 1, "<picture>": 2}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "processor_config.json").write_text('{"image_token": "<elsewhere>"}')
    assert open_tokenizer(tmp_path).image == 3
    (tmp_path / "processor_config.json").write_text('{"image_token": "<picture>"}')
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.image, tokenizer.vocabulary) == (2, 3)
    assert tokenizer.special("<picture>") == 2


def test_null_says_that_there_is_no_such_token(tmp_path):
    vocabulary = {"</s>": 0, "a": 1, "<s>": 2, "<pad>": 3, "<image>": 4}
    content = WORDS | {"model": WORDS["model"] | {"vocab": vocabulary}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.pad, tokenizer.image) == (2, 3, 4)
    assert tokenizer.has_bos
    none = {"bos_token": None, "pad_token": None, "image_token": None, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(none))
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.pad, tokenizer.image) == (0, 0, 5)
    assert not tokenizer.has_bos


KINDS = {
    "json": ("tokenizer.json", json.dumps(WORDS).encode()),
    "other name": ("mine.json", json.dumps(WORDS).encode()),
    "sentencepiece": ("tokenizer.model", sentence_piece()),
    "gguf": ("model.gguf", gguf(fields())),
}


@pytest.mark.parametrize(("name", "data"), KINDS.values(), ids=KINDS)
def test_a_kept_tokenizer_reads_the_same(tmp_path, name, data):
    folder, kept = tmp_path / "folder", tmp_path / "kept"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / name).write_bytes(data)
    if name != "model.gguf":
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
        settings = {"eos_token": "</s>", "extra_special_tokens": ["<|turn|>"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    keep_tokenizer(folder / name, kept)
    before, after = (open_tokenizer(path) for path in (folder / name, kept))
    assert after.encode("ab a</s>") == before.encode("ab a</s>")
    state, again = ({**vars(one), "path": None, "_tokenizer": None} for one in (before, after))
    assert again == state
    assert (kept / "additional_chat_templates").is_dir() == (name != "model.gguf")
