"""Chat templates by `apply_chat_template` of transformers: ids of conversations, and where a template says that the assistant speaks."""

import datetime
import json
import tempfile

import chat_templates
import numpy as np
import small_tokenizers as small
from PIL import Image
from recording import save
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, CLIPImageProcessor, LlamaTokenizer, LlavaProcessor
from transformers.utils import chat_template_utils

SEED = 0
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


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
        chat_templates.BYTES: small.byte_level(
            small.by_pattern(small.QWEN2), SPECIALS, plain=("<think>", "</think>")
        ),
        chat_templates.METASPACE: metaspace,
        chat_templates.LEGACY: small.legacy(metaspace),
        chat_templates.ALWAYS: small.always(metaspace),
    }


def packed(content: object) -> np.ndarray:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def results(
    tokenizer: AutoTokenizer, with_system: bool, in_parts: bool, generation: bool
) -> list[dict[str, object]]:
    """Ids of every conversation, with and without what asks for an answer."""
    found = []
    for conversation in chat_templates.CONVERSATIONS:
        for turns in (conversation, (chat_templates.SYSTEM, *conversation))[: 1 + with_system]:
            messages = [
                {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
                for role, text in turns
            ]
            options = {
                "add_generation_prompt": turns[-1][0] == "user",
                "tokenize": True,
                "return_dict": True,
            }
            encoded = tokenizer.apply_chat_template(
                messages, **options, return_assistant_tokens_mask=generation
            )
            ids = [int(index) for index in encoded["input_ids"]]
            found.append(
                {"turns": turns, "ids": ids}
                | ({"mask": list(encoded["assistant_masks"])} if generation else {})
            )
    return found


def seeing(tokenizer: AutoTokenizer, template: str, name: str) -> list[dict[str, object]]:
    """Ids of every conversation with images, by the processor of a model of images and texts."""
    images = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    options = {
        "patch_size": 4,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    processor = LlavaProcessor(
        images, tokenizer, chat_template=template, image_token=name, **options
    )
    found = []
    for turns in chat_templates.IMAGE_CONVERSATIONS:
        image = {"type": "image", "image": Image.new("RGB", (8, 8))}
        messages = [
            {
                "role": role,
                "content": [
                    image if part is None else {"type": "text", "text": part} for part in said
                ],
            }
            for role, said in turns
        ]
        prompt = turns[-1][0] == "user"
        encoded = processor.apply_chat_template(
            messages, add_generation_prompt=prompt, tokenize=True, return_dict=True
        )
        found.append(
            {"turns": turns, "ids": [int(index) for index in np.ravel(encoded["input_ids"])]}
        )
    return found


arrays = {}
for kind, tokenizer in tokenizers().items():
    arrays[f"tokenizer:{kind}"] = packed(json.loads(tokenizer.to_str()))
    for name, (template, kind_of_style, roles, with_system) in chat_templates.STYLES.items():
        if kind_of_style == kind:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save(f"{folder}/tokenizer.json")
                config = {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "chat_template": template,
                    **roles,
                }
                with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
                    json.dump(config, file)
                reader = AutoTokenizer.from_pretrained(folder)
            found = results(reader, with_system, name == "parts", "{% generation %}" in template)
            arrays[f"style:{name}"] = packed(
                {"tokenizer": kind, "config": config, "results": found}
            )
for name, (template, kind, roles, token) in chat_templates.SEEING.items():
    tokenizer = tokenizers()[kind]
    tokenizer.add_special_tokens([token])
    if "bos_token" in roles:  # as tokenizers of Llama have it
        bos = roles["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{bos} $A", f"{bos} $A {bos} $B", [(bos, tokenizer.token_to_id(bos))]
        )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **roles}
        with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
            json.dump(config, file)
        reader = AutoTokenizer.from_pretrained(folder)
    arrays[f"tokenizer:{name}"] = packed(json.loads(tokenizer.to_str()))
    arrays[f"style:{name}"] = packed(
        {"tokenizer": name, "config": config, "results": seeing(reader, template, token)}
    )
save(__file__, SEED, arrays)
