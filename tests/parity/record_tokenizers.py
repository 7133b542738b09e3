"""Tokenizers in GGUF, SentencePiece's and tiktoken's formats: ids of texts, by transformers, sentencepiece and tiktoken."""

import base64
import json
import pathlib
import tempfile

import gguf
import numpy as np
import sentencepiece
import small_tokenizers as small
import tiktoken
from recording import save
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

SEED = 0
CUTS = {
    "smollm": small.smollm(),
    "llama-bpe": small.by_pattern(small.LLAMA3),
    "qwen2": small.by_pattern(small.QWEN2),
}
CONTROL, USER_DEFINED = 3, 4


def write_gguf(
    path: pathlib.Path,
    model: str,
    tokens: list[str],
    kinds: list[int],
    pre: str = "",
    **fields: object,
) -> bytes:
    """A file with a tokenizer and one small tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if pre:
        writer.add_tokenizer_pre(pre)
    if "merges" in fields:
        writer.add_token_merges(fields["merges"])
    if "scores" in fields:
        writer.add_token_scores(fields["scores"])
    writer.add_tensor("blk.0.attn_norm.weight", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def encode(tokenizer: object, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def packed(content: object) -> np.ndarray:
    return np.frombuffer(
        content if isinstance(content, bytes) else json.dumps(content).encode(), np.uint8
    )


def byte_level_gguf(folder: pathlib.Path, pre: str) -> dict[str, np.ndarray]:
    """In `apart`, transformers 5.24 is left to itself, which does not know "smollm": it cuts digits off in another way than the model."""
    trained = small.byte_level(CUTS[pre], ["<unk>", "<s>", "</s>"], plain=("<think>",))
    content = json.loads(trained.to_str())
    tokens = [name for name, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    kinds = [CONTROL] * 3 + [1] * (len(tokens) - 4) + [USER_DEFINED]
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    data = write_gguf(folder / "model.gguf", "gpt2", tokens, kinds, pre, merges=merges)
    reader = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    found = {"file": packed(data), "apart": packed(encode(reader, small.TEXTS))}
    reader.backend_tokenizer.pre_tokenizer = CUTS[pre]
    return {
        f"gguf:{pre}:{key}": value
        for key, value in (found | {"ids": packed(encode(reader, small.TEXTS))}).items()
    }


def sentence_piece(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """tokenizer.model, and the same pieces in a GGUF file."""
    data = small.sentence_piece()
    model = sentencepiece_model_pb2.ModelProto.FromString(data)
    model.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False})
    )
    whole = AutoTokenizer.from_pretrained(folder)
    tokens, kinds, scores = (
        list(column)
        for column in zip(
            *((piece.piece, piece.type, piece.score) for piece in model.pieces), strict=True
        )
    )
    other = write_gguf(folder / "model.gguf", "llama", tokens, kinds, scores=scores)
    reader = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    return {
        "sentencepiece:file": packed(data),
        "sentencepiece:ids": packed([processor.encode(text) for text in small.TEXTS]),
        "sentencepiece:whole": packed(encode(whole, small.TEXTS)),
        "gguf:llama:file": packed(other),
        "gguf:llama:whole": packed(encode(reader, small.TEXTS)),
    }


def llama3() -> dict[str, np.ndarray]:
    """Ranks, one a line."""
    trained = json.loads(small.byte_level(CUTS["llama-bpe"], []).to_str())["model"]
    spelled = {character: byte for byte, character in gguf_bytes().items()}
    tokens = [bytes(spelled[character] for character in token) for token in trained["vocab"]]
    # A token that no sequence of merges makes: whole words are looked up first.
    tokens.append(b" circumnavigate")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    specials = {name: len(ranks) + number for number, name in enumerate(names)}
    encoding = tiktoken.Encoding(
        "small", pat_str=small.LLAMA3, mergeable_ranks=ranks, special_tokens=specials
    )
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    settings = {
        "added_tokens_decoder": {
            str(index): {"content": name, "special": True} for name, index in specials.items()
        }
    }
    texts = [*small.TEXTS, "to circumnavigate"]
    return {
        "tiktoken:file": packed(lines),
        "tiktoken:settings": packed(settings),
        "tiktoken:texts": packed(texts),
        "tiktoken:ids": packed([encoding.encode_ordinary(text) for text in texts]),
    }


def gguf_bytes() -> dict[int, str]:
    """GPT-2's characters of bytes, by the library that llama.cpp converts with."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


arrays = {"texts": packed(small.TEXTS)} | llama3()
with tempfile.TemporaryDirectory() as name:
    for pre in CUTS:
        folder = pathlib.Path(name, pre)
        folder.mkdir()
        arrays |= byte_level_gguf(folder, pre)
    arrays |= sentence_piece(pathlib.Path(name))
save(__file__, SEED, arrays)
