"""Where a published tokenizer lies, and how transformers reads and writes it: folders, tokenizer.json, tokenizer.model, GGUF files.

Transformers is shown a folder with copies of the files that are known, each of a bounded size. It reads them all with one class,
`PreTrainedTokenizerFast`, which takes a tokenizer.json as it stands and a tokenizer.model by its own rules. The classes that AutoTokenizer
picks by name have rules of their own: GPT2Tokenizer cuts digits otherwise than SmolLM2's tokenizer.json says, and LlamaTokenizer merges
spaces otherwise than sentencepiece does with Mistral's tokenizer.model.
"""

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import tokenizers

from mmjax.base.files import open_regular, read_object, read_regular
from mmjax.base.huggingface import IMAGES, PROCESSOR, transformers
from mmjax.data.text.gguf_tokenizer import read_gguf
from mmjax.data.text.tokenizer_models import Vocabulary, read_model, unreadable
from mmjax.errors import InputError

_NAMES = ("tokenizer.json", "tokenizer.model")
_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_TEMPLATE, _LEGACY_TEMPLATE = "chat_template.jinja", "chat_template.json"
_MORE_TEMPLATES, _DECODER = "additional_chat_templates", "added_tokens_decoder"
_SPECIAL = "additional_special_tokens"
# What is read beside a vocabulary; of the last one, only whether it is there.
_BESIDE = (_CONFIG, _MAP, _ADDED, _TEMPLATE, _LEGACY_TEMPLATE, PROCESSOR, IMAGES)
_ROLES = ("bos_token", "eos_token", "pad_token", "image_token")
_GGUF = b"GGUF"
_LARGEST = 128 * 1024 * 1024  # bytes; the tokenizer of Gemma, with 262,144 tokens, has 33 million
_LARGEST_SETTINGS = 8 * 1024 * 1024  # bytes; published ones have up to 1.2 MB
# Transformers compares what settings name with each added token, in seconds for this many; one alone takes as long as some of these.
_MOST_NAMED, _MOST_COMPARED, _BASE = 2048, 2**21, 16
_MOST_PARTS = 2**17  # lists and objects of settings, which transformers copies one by one

Settings = dict[str, dict[str, Any]]
"""What the JSON files beside a vocabulary say, by their names."""


def read_tokenizer(path: Path | str) -> tuple[Path, Any]:
    """The file that holds the vocabulary, and the tokenizer: a `PreTrainedTokenizerFast` of transformers.

    Args:
        path: tokenizer.json, tokenizer.model (of Llama 3, or of SentencePiece), a GGUF file, or a folder with one of these, looked for
            in this order. What lies beside it (tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja,
            additional_chat_templates/, chat_template.json, processor_config.json) is read too.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    file = _find_file(Path(path).absolute())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = _copy(file, folder)
        logger = logging.getLogger("transformers")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # what matters is raised
        try:
            tokenizer = transformers().PreTrainedTokenizerFast.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **vocabulary.options
            )
        except Exception as error:  # it expects files that are in order
            raise unreadable(file, error, folder) from None
        finally:
            logger.setLevel(level)
    added = tokenizer.init_kwargs[_DECODER].values()
    known = vocabulary.tokens | {str(token) for token in added}
    for role, named in tokenizer.special_tokens_map.items():
        # Transformers gives it a new id. What stands for padding is never looked at.
        if role in _ROLES and role != "pad_token" and named not in known:
            raise InputError(
                f"{file}: tokenizer_config.json names {named!r} as {role}, but there is no such token."
            )
    return file, tokenizer


def write_tokenizer(source: Path | str, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, with the chat template, into a folder that exists.

    Args:
        source: as `read_tokenizer` takes it.

    Raises:
        InputError: the source cannot be read.
    """
    _, tokenizer = read_tokenizer(source)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    settings = read_object(folder / _CONFIG, _LARGEST_SETTINGS, "part of a tokenizer")
    # The name of the same class before transformers 5, which knows both.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")


def keep_tokenizer(source: Path | str, folder: Path) -> None:
    """Copies what `read_tokenizer` reads into a folder that is made; of a GGUF file, what `write_tokenizer` makes of it.

    Raises:
        InputError: there is no such tokenizer, or it cannot be read.
    """
    file = _find_file(Path(source).absolute())
    folder.mkdir()
    if _is_gguf(file):
        write_tokenizer(file, folder)
        return
    kept = [file.with_name(name) for name in _BESIDE] + _more_templates(file)
    for path in filter(os.path.lexists, kept):
        target = folder / path.relative_to(file.parent)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(read_regular(path, _LARGEST_SETTINGS, "part of a tokenizer"))
    name = _NAMES[1] if file.suffix == ".model" else _NAMES[0]
    (folder / name).write_bytes(read_regular(file, _LARGEST, "tokenizer"))


def _find_file(path: Path) -> Path:
    # A link to nothing is found too: opening it says what it is.
    if not path.is_dir():
        if not os.path.lexists(path):
            raise InputError(f"There is no tokenizer file {path}.")
        return path
    for name in _NAMES:
        if os.path.lexists(path / name):
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


def _is_gguf(file: Path) -> bool:
    with open(open_regular(file)[0], "rb") as stream:
        return stream.read(len(_GGUF)) == _GGUF


def _more_templates(file: Path) -> list[Path]:
    """Chat templates beside the usual one, whose names are those of their files."""
    return sorted(file.with_name(_MORE_TEMPLATES).glob("*.jinja"))


def _copy(file: Path, folder: Path) -> Vocabulary:
    """Fills the folder that transformers reads."""
    if _is_gguf(file):
        content, named = read_gguf(file)
        settings = {_CONFIG: {key: value for key, value in named.items() if value is not None}}
        vocabulary = _read_json(json.dumps(content).encode(), file)
    else:
        settings = _read_settings(file)
        processor = settings.pop(PROCESSOR)
        data = read_regular(file, _LARGEST, "tokenizer")
        vocabulary = read_model(data, file, settings[_CONFIG]) or _read_json(data, file)
        image = processor.get("image_token")
        if isinstance(image, str) and image in vocabulary.tokens | _added(settings):
            settings[_CONFIG].setdefault("image_token", image)
    _check_effort(file, settings, vocabulary)
    for name, content in settings.items():
        text = json.dumps(content)
        if text.count("[") + text.count("{") > _MOST_PARTS:
            raise InputError(
                f"{file.with_name(name)} has more lists and objects than any tokenizer."
            )
        (folder / name).write_text(text, encoding="utf-8")
    (folder / vocabulary.name).write_bytes(vocabulary.data)
    return vocabulary


def _read_settings(file: Path) -> Settings:
    """What the files beside a vocabulary say; the chat template, from wherever it is, as tokenizer_config.json would say it."""
    found: Settings = {_CONFIG: {}, PROCESSOR: {}} | {
        name: read_object(path, _LARGEST_SETTINGS, "part of a tokenizer")
        for name in (_CONFIG, _MAP, _ADDED, _LEGACY_TEMPLATE, PROCESSOR)
        if os.path.lexists(path := file.with_name(name))
    }
    config, legacy = found[_CONFIG], found.pop(_LEGACY_TEMPLATE, {}).get("chat_template")
    config.pop("fast_tokenizer_files", None)  # names of further files
    more = found.get(_MAP, {}).get(_SPECIAL)
    if isinstance(more, list) and not config.keys() & {_SPECIAL, "extra_special_tokens", _DECODER}:
        # Transformers heeds them here for every kind of vocabulary, and in the older file not for all.
        config[_SPECIAL] = [one.get("content") if isinstance(one, dict) else one for one in more]
    templates: Any = {path.stem: _read_text(path) for path in _more_templates(file)}
    if os.path.lexists(path := file.with_name(_TEMPLATE)):
        templates["default"] = _read_text(path)
    # As transformers: the processor of a model of images and texts looks in another order than a tokenizer.
    files = templates.get("default") if list(templates) == ["default"] else templates or None
    places = [files, config.get("chat_template"), legacy]
    if any(os.path.lexists(file.with_name(name)) for name in (PROCESSOR, IMAGES)):
        own = found[PROCESSOR].get("chat_template")
        places = [own, legacy, files, config.get("chat_template")]
    config.pop("chat_template", None)
    return found | {
        _CONFIG: config
        | next(({"chat_template": place} for place in places if place is not None), {})
    }


def _read_text(path: Path) -> str:
    try:
        return read_regular(path, _LARGEST_SETTINGS, "chat template").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}.") from None


def _added(settings: Settings) -> set[str]:
    """The names of tokens that settings add to a vocabulary."""
    named = settings[_CONFIG].get(_DECODER)
    tokens = list(named.values()) if isinstance(named, dict) else []
    names = (token.get("content") for token in tokens if isinstance(token, dict))
    return {*settings.get(_ADDED, ()), *(name for name in names if isinstance(name, str))}


def _check_effort(file: Path, settings: Settings, vocabulary: Vocabulary) -> None:
    def size(value: Any) -> int:
        return len(value) if isinstance(value, dict | list) else 0

    config, roles = dict(settings[_CONFIG]), settings.get(_MAP, {})
    # Most added tokens stand in a tokenizer.json and beside it.
    added = max(vocabulary.added, size(config.pop(_DECODER, None)) + size(settings.get(_ADDED)))
    named = sum(map(size, (config, roles, *config.values(), *roles.values()))) + vocabulary.named
    if named > _MOST_NAMED or (_BASE + named) * added > _MOST_COMPARED:
        raise InputError(
            f"{file}: {named} special tokens and settings beside {added} added tokens are more than those of any tokenizer."
        )


def _read_json(data: bytes, file: Path) -> Vocabulary:
    """A tokenizer.json, written anew by the package that runs it."""
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the package raises no narrower type
        raise InputError(f"{file} is not a tokenizer: {error}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Vocabulary(
        "tokenizer.json",
        tokenizer.to_str().encode(),
        set(tokenizer.get_vocab()),
        added=len(tokenizer.get_added_tokens_decoder()),
    )
