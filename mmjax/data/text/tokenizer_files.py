"""Where a published tokenizer lies, and in which form: folders, tokenizer.json, tokenizer.model, GGUF files; and how it is written as the
files that transformers reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmjax.base.files import read_regular
from mmjax.data.text.gguf_tokenizer import read_gguf
from mmjax.data.text.sentencepiece_tokenizer import read_sentencepiece
from mmjax.data.text.tiktoken_tokenizer import is_tiktoken, read_tiktoken
from mmjax.data.text.tokenizer_json import LARGEST, Content
from mmjax.errors import InputError

_GGUF = b"GGUF"
_BEGINNING = 4096  # bytes that tell the formats apart
_NAMES = ("tokenizer.json", "tokenizer.model")
_SETTINGS = 8 * 1024 * 1024  # bytes; published ones have up to 1.2 MB


@dataclass(frozen=True)
class TokenizerFiles:
    """A published tokenizer.

    Attributes:
        path: the file that holds the vocabulary.
        content: as tokenizer.json has it.
        settings: as tokenizer_config.json has them; empty without one.
        chat_template: in the language of jinja, or None.
    """

    path: Path
    content: Content
    settings: dict[str, Any]
    chat_template: str | None


def read_tokenizer(path: Path | str) -> TokenizerFiles:
    """Reads a tokenizer.

    Args:
        path: tokenizer.json, tokenizer.model (of Llama 3, or of SentencePiece), a GGUF file, or a folder with one of these, looked for
            in this order. What lies beside it (tokenizer_config.json, chat_template.jinja, chat_template.json) is read too.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    file = _find_file(Path(path).absolute())
    try:
        with file.open("rb") as stream:
            beginning = stream.read(_BEGINNING)
    except OSError as error:
        raise InputError(f"The tokenizer file {file} cannot be read: {error.strerror}.") from None
    if beginning.startswith(_GGUF):
        content, settings = read_gguf(file)
        return TokenizerFiles(file, content, settings, settings["chat_template"])
    settings = _read_json(file.with_name("tokenizer_config.json"), optional=True)
    if is_tiktoken(beginning):
        content = read_tiktoken(file, settings)
    elif file.suffix == ".model":
        content = read_sentencepiece(file, settings)
    else:
        content = _read_json(file, limit=LARGEST)
    return TokenizerFiles(file, content, settings, _find_chat_template(file.parent, settings))


def _find_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"There is no tokenizer file {path}.")
        return path
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise InputError(
            f"{path} has {len(found)} GGUF files; name the one whose tokenizer is meant."
        )
    if not found:
        raise InputError(
            f"There is no tokenizer file in {path}: neither {' nor '.join(_NAMES)} nor a GGUF file."
        )
    return found[0]


def _find_chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """A file of its own comes before a setting; of several named ones, "default" is taken."""
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return read_regular(file, _SETTINGS, "chat template").decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"The chat template {file} cannot be read: {error}.") from None
    found = settings.get("chat_template") or _read_json(
        folder / "chat_template.json", optional=True
    ).get("chat_template")
    if isinstance(found, list):
        found = next(
            (
                entry.get("template")
                for entry in found
                if isinstance(entry, dict) and entry.get("name") == "default"
            ),
            None,
        )
    return found if isinstance(found, str) else None


def _read_json(path: Path, optional: bool = False, limit: int = _SETTINGS) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        content = json.loads(read_regular(path, limit, "part of a tokenizer").decode("utf-8"))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"The tokenizer file {path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"The tokenizer file {path} does not hold a JSON object.")
    return content


_CLASS = "PreTrainedTokenizerFast"


def write_tokenizer(source: Path | str, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, with the chat template, into a folder that exists.

    What was converted (from a GGUF file or a tokenizer.model) is read by transformers' class for any tokenizer.json.

    Args:
        source: as `read_tokenizer` takes it.

    Raises:
        InputError: the source cannot be read.
    """
    files = read_tokenizer(source)
    settings = dict(files.settings)
    if files.path.name != "tokenizer.json" or "tokenizer_class" not in settings:
        settings["tokenizer_class"] = _CLASS
    settings["chat_template"] = files.chat_template
    kept = {name: value for name, value in settings.items() if value is not None}
    for name, content in (("tokenizer.json", files.content), ("tokenizer_config.json", kept)):
        (folder / name).write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
