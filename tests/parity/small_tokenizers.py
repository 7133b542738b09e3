"""Tokenizers trained on a page of text. For record_tokenizers.py and record_chat_templates.py."""

import io

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CORPUS = [
    "A photo of a dog that sits on the couch; it's 12 years old, isn't it? The dog's name was Bello.",
    "The assistant answers: a red circle, a blue square and 3 yellow triangles. You are helpful and you are brief.",
    "def area(width, height):\n    return width * height  # 1024 x 768\n\n\nprint(area(3, 4.5))\n",
    "Grüße aus Köln, naïve café, ¿dónde está? Что это? 这是一张照片。 今日は 2024年7月26日。",
    "user\nsystem\nassistant\nquestion question answer answer: what is there in the image of an image?\r\n\r\nYes. No.",
    "        indented    by    many        spaces\t\tand tabs",
] * 3

TEXTS = [
    "",
    " ",
    "A photo of a dog.",
    " two  spaces   before and    after    ",
    "it's I'LL we've don't DON'T",
    "digits 7 42 365 2024 31415 and 1,000.50",
    "line\nfeeds\n\nand\r\n\r\n  \n more\n",
    "\ttabs\t\tand spaces \t mixed",
    "    def f(x):\n        return x ** 2",
    "Grüße, naïve café 这是什么? Что такое? 今日は 🙂🙂 é",
    "unseen: ☃ ಕನ್ನಡ \u200b zero width, \x07 bell",
    "punctuation?!... (a)[b]{c} <d> --- ___ @#$%^&*",
    "▁ the sign itself ▁▁",
    "aaaaaaaaaa bbbbbb                 end",
    "a" * 70,
]

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Texts cut by a regular expression, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )


def smollm() -> pre_tokenizers.PreTokenizer:
    """As the tokenizer.json of SmolLM2 has it."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def byte_level(
    cut: pre_tokenizers.PreTokenizer,
    specials: list[str],
    size: int = 480,
    plain: tuple[str, ...] = (),
) -> Tokenizer:
    """Byte-level BPE; special tokens come first, `plain` added tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in plain])
    return tokenizer


def sentence_piece(size: int = 420) -> bytes:
    """A model in the manner of Llama 2: BPE with bytes, no normalisation, a space before every text."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.splitlines()),
        model_writer=written,
        model_type="bpe",
        vocab_size=size,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<tool>"],
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def always(model: Tokenizer) -> Tokenizer:
    """The same with a space before every text that begins without one, also after special tokens."""
    tokenizer = Tokenizer.from_str(model.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    return tokenizer


def legacy(model: Tokenizer) -> Tokenizer:
    """The same with a normalizer that puts a space before every text, as converted by transformers 4."""
    tokenizer = Tokenizer.from_str(model.to_str())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    return tokenizer
