"""A published tokenizer as the files that transformers reads."""

import json
from pathlib import Path

from mmjax.data.tokenizer_files import read_tokenizer

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
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
