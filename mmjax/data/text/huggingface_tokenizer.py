"""Tokenizers of published models: read by transformers, run by the `tokenizers` package alone, as loader processes want it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import tokenizers

from mmjax.data.text.tokenizer_files import read_tokenizer
from mmjax.data.text.tokenizer_json import SPACE, Content
from mmjax.errors import InputError

# Names that published tokenizers give to these tokens, where no tokenizer_config.json tells.
_KNOWN_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "image": ("<image>", "<|image|>", "<|image_pad|>", "<image_soft_token>", "[IMG]"),
}
# What the parts of a tokenizer.json that see spaces are called, and lists of them.
_SEQUENCES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}

PrefixSpace = Literal["never", "first", "always", "again"]
"""Where a tokenizer puts a space of its own: before a whole text that begins without one; also before each text that follows a special
token; the same, even before a text that begins with a space."""


class HuggingFaceTokenizer:
    """A Tokenizer (mmjax.data.text.tokenizer) of a published model: tokenizer.json, tokenizer.model, or a GGUF file.

    A text is encoded as it stands, wherever it stands: the space that SentencePiece-like tokenizers put before a text is not added, nor
    taken off again in decoding; and the names of special tokens within a text are ordinary characters.

    The tokens named in tokenizer_config.json come first, then customary names, unless null there says that the model has no such token; an
    eos there must be. Without a bos, eos takes its place (as in GPT-2); without a pad, too: padding is masked. Without an image token, an
    id is appended after the vocabulary. Special is what any file of the folder says to be special.

    Attributes:
        path: the file that holds the vocabulary.
        has_bos: false where the model's settings say that it has none: then nothing stands before a text.
        special_tokens: ids of the special tokens by name.
        names: of the tokens of roles that the files name, as a chat template calls them: {"bos_token": "<s>"}.
        swallows: for special tokens that take white space along, on which sides: {"<|end|>": (False, True)}.
        chat_template: the model's own, in the language of jinja, or None; of several by name, that named "default".
        chat_templates: the names of all, where there are several.
        prefix_space: what `encode` does not do, but a chat template's text is made for.
        begins: the special token that it would put before a whole text, which `encode` does not do either; "" if none.
    """

    def __init__(self, path: Path | str):
        """Reads `path`, as `read_tokenizer` does. Raises InputError if it cannot be read or has no end-of-sequence token."""
        self.path, published = read_tokenizer(path)
        template = published.chat_template
        several = template if isinstance(template, dict) else {}
        self.chat_template: str | None = several.get("default") if several else template
        self.chat_templates: tuple[str, ...] = tuple(several)
        self.names: dict[str, str] = dict(published.special_tokens_map)
        content = json.loads(published.backend_tokenizer.to_str())
        named = published.init_kwargs["added_tokens_decoder"].values()
        is_special = {str(token) for token in named if token.special}
        is_special |= set(published.all_special_tokens)
        for token in content["added_tokens"]:
            token["special"] |= token["content"] in is_special
        # Without such spaces, the ids of two texts in a row mean just these texts.
        self.prefix_space = _take_prefix_space(content)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        self._tokenizer.encode_special_tokens = True  # names of special tokens in a text stay text
        self._ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(self._ids.values()) + 1
        none = [role for role in _KNOWN_NAMES if _is_null(published, f"{role}_token")]
        eos = self._find("eos")
        if eos is None:
            raise InputError(
                f"{self.path}: no end-of-sequence token; name it as eos_token in tokenizer_config.json."
            )
        bos, pad, image = (
            None if role in none else self._find(role) for role in ("bos", "pad", "image")
        )
        self.has_bos = "bos" not in none
        self.eos = eos
        self.bos = eos if bos is None else bos
        self.pad = eos if pad is None else pad
        self.image = self.vocabulary if image is None else image
        self.vocabulary = max(self.vocabulary, self.image + 1)
        added = [token for token in content["added_tokens"] if token["special"]]
        model = content["model"]
        unknown = model.get("unk_id", self._ids.get(model.get("unk_token") or ""))
        specials = {token["id"] for token in added} | {self.pad, self.bos, self.eos, self.image}
        self._specials = frozenset(specials - ({unknown} - {self.eos}))
        self.special_tokens = {
            name: index for name, index in self._ids.items() if index in self._specials
        }
        if not self.names:
            by_id = {index: name for name, index in self.special_tokens.items()}
            found = {"bos_token": bos, "eos_token": eos}
            self.names = {role: by_id[index] for role, index in found.items() if index is not None}
        first = next(iter(self._tokenizer.encode("").tokens), "")
        self.begins = first if self._ids.get(first) == self.bos != self.eos else ""
        self.swallows = {
            token["content"]: (token["lstrip"], token["rstrip"])
            for token in added
            if token["lstrip"] or token["rstrip"]
        }

    def encode(self, text: str) -> list[int]:
        """Ids of the text; see `Tokenizer.encode`."""
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the package raises no narrower type
            raise InputError(f"{self.path} cannot encode {text[:40]!r}: {error}.") from None
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            # Its name stood in the text: cut within it, so that no token covers it.
            if index in self._specials and end - start > 1:
                return self.encode(text[: start + 1]) + self.encode(text[start + 1 :])
        return encoding.ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; see `Tokenizer.decode`."""
        return self._tokenizer.decode(
            [index for index in map(int, ids) if index not in self._specials],
            skip_special_tokens=False,
        )

    def special(self, name: str) -> int:
        """The id of a special token; see `Tokenizer.special`."""
        if self._ids.get(name) not in self._specials:
            raise InputError(f"{self.path} has no special token {name!r}; a template needs it.")
        return self._ids[name]

    @property
    def largest_of_text(self) -> int:
        """The largest id that a text can have."""
        return max(
            (index for index in self._ids.values() if index not in self._specials), default=0
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer.encode_special_tokens = True  # it does not survive pickling

    def _find(self, role: str) -> int | None:
        named = self.names.get(f"{role}_token")
        names = _KNOWN_NAMES[role] if named is None else (named,)
        return next((self._ids[name] for name in names if name in self._ids), None)


def _is_null(published: Any, role: str) -> bool:
    """Whether settings say of a role that no token has it, and do not only say nothing."""
    return published.init_kwargs.get(role, "") is None


def _take_prefix_space(content: Content) -> PrefixSpace:
    """Takes out of a tokenizer what puts a space before a text, or takes it off again. Returns where one was put."""
    found: PrefixSpace = "never"
    for name, members in _SEQUENCES.items():
        kept = []
        for part in _parts(content[name], members):
            kind = part["type"]
            # Transformers doubles the space that a text begins with, beside a Metaspace.
            doubles = kind == "Replace" and part["pattern"] == {"Regex": rf"\A{SPACE}"}
            if kind == "Prepend" or doubles:
                found = "again"
                continue
            if kind == "Strip" and part.get("content") == " ":
                continue
            if name == "pre_tokenizer" and found == "never":
                found = part.get(
                    "prepend_scheme", "always" if part.get("add_prefix_space") else found
                )
            for setting, value in (("prepend_scheme", "never"), ("add_prefix_space", False)):
                if setting in part:
                    part[setting] = value
            kept.append(part)
        if content[name] is not None:
            content[name] = {"type": "Sequence", members: kept}
    return found


def _parts(part: Content | None, members: str) -> list[Content]:
    """The members of a sequence, and of sequences in it."""
    if part is None or members not in part:
        return [part] if part else []
    return [inner for member in part[members] for inner in _parts(member, members)]
