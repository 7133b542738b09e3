"""SentencePiece's `tokenizer.model`, as Llama 2, Vicuna and Mistral publish it: pieces with scores. https://github.com/google/sentencepiece"""

from pathlib import Path
from typing import Any

from mmjax.base.files import read_regular
from mmjax.data.text import tokenizer_json
from mmjax.data.text.tokenizer_json import Added, Content
from mmjax.errors import InputError

# Of the format's enumerations.
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_MODELS = {1: "Unigram", 3: "words", 4: "characters"}


def read_sentencepiece(path: Path, settings: dict[str, Any]) -> Content:
    """The tokenizer in a file.

    A space is put before a whole text, or after special tokens too where tokenizer_config.json (`settings`) says "legacy": true.

    Raises:
        InputError: the file is damaged, or changes texts in a way that is not implemented.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2  # takes a while to import, and few need it

    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(read_regular(path, tokenizer_json.LARGEST, "tokenizer"))
    except DecodeError as error:
        raise InputError(f"The tokenizer file {path} cannot be read: {error}.") from None
    if not model.pieces:
        raise InputError(f"{path} is no SentencePiece model.")
    kind, rules = model.trainer_spec.model_type, model.normalizer_spec
    if kind != _BPE:
        raise InputError(
            f"{path} is a SentencePiece model of the kind {_MODELS.get(kind, kind)!r}; mmjax reads BPE."
        )
    if rules.precompiled_charsmap or rules.remove_extra_whitespaces or not rules.escape_whitespaces:
        raise InputError(
            f"{path} changes texts before it encodes them ({rules.name or 'white space'}), which mmjax does not. Convert it to a "
            "tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    vocabulary = {name: index for index, (name, _, _) in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise InputError(f"The tokenizer file {path} is damaged: two of its pieces are the same.")
    scores = {name: score for name, score, kind in pieces if kind == _NORMAL}
    added = [
        Added(index, name, kind == _CONTROL)
        for index, (name, _, kind) in enumerate(pieces)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    space = "always" if settings.get("legacy") else "first"
    return tokenizer_json.sentence_piece(
        vocabulary,
        tokenizer_json.merges_by_score(scores),
        added,
        unknown=next((name for name, _, kind in pieces if kind == _UNKNOWN), None),
        byte_fallback=model.trainer_spec.byte_fallback,
        space=space if rules.add_dummy_prefix else "never",
    )
