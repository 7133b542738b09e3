"""Chat templates by `apply_chat_template` of transformers: ids of conversations, and where a template says that the assistant speaks."""

import datetime
import json
import tempfile

import chat_templates
import numpy as np
import small_tokenizers as small
from recording import save
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer
from transformers.utils import chat_template_utils

SEED = 0
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


class FixedDay(datetime.datetime):
    """The day on which these templates are rendered."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime(2024, 7, 26, tzinfo=tz)


chat_template_utils.datetime = FixedDay


def tokenizers() -> dict[str, Tokenizer]:
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(small.sentence_piece())
        file.flush()
        metaspace = LlamaTokenizer.from_pretrained(file.name).backend_tokenizer
    return {
        chat_templates.BYTES: small.byte_level(small.by_pattern(small.QWEN2), SPECIALS, plain=("<think>", "</think>")),
        chat_templates.METASPACE: metaspace,
        chat_templates.LEGACY: small.legacy(metaspace),
        chat_templates.ALWAYS: small.always(metaspace),
    }


def packed(content: object) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def results(tokenizer: AutoTokenizer, with_system: bool, in_parts: bool, generation: bool) -> list[dict[str, object]]:
    """Ids of every conversation, with and without what asks for an answer."""
    found = []
    for conversation in chat_templates.CONVERSATIONS:
        for turns in (conversation, (chat_templates.SYSTEM, *conversation))[: 1 + with_system]:
            messages = [{"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in turns]
            options = {"add_generation_prompt": turns[-1][0] == "user", "tokenize": True, "return_dict": True}
            encoded = tokenizer.apply_chat_template(messages, **options, return_assistant_tokens_mask=generation)
            ids = [int(index) for index in encoded["input_ids"]]
            found.append({"turns": turns, "ids": ids} | ({"mask": list(encoded["assistant_masks"])} if generation else {}))
    return found


arrays = {}
for kind, tokenizer in tokenizers().items():
    arrays[f"tokenizer:{kind}"] = packed(json.loads(tokenizer.to_str()))
    for name, (template, kind_of_style, roles, with_system) in chat_templates.STYLES.items():
        if kind_of_style == kind:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save(f"{folder}/tokenizer.json")
                config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **roles}
                with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
                    json.dump(config, file)
                reader = AutoTokenizer.from_pretrained(folder)
            found = results(reader, with_system, name == "parts", "{% generation %}" in template)
            arrays[f"style:{name}"] = packed({"tokenizer": kind, "config": config, "results": found})
save(__file__, SEED, arrays)
