"""SmolLM2-135M-Instruct from its GGUF file (transformers): logits of a sentence, and the answer to a question of a chat.

It needs the packages gguf and accelerate in the oracle's environment, and the file, named by the variable SMOLLM2_GGUF;
`python -m mmjax.fetch smollm2` brings it. Of the logits, every 37th is kept.
"""

import os
import pathlib
import sys

import numpy as np
import torch
from recording import save
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

CANNOT_RUN_HERE = 77  # as automake's test driver understands it; the live tests are then skipped
SEED = 0  # nothing is random
SENTENCE = (
    "The quick brown fox jumps over the lazy dog, because 3 + 4 = 7; und dann schläft er in Zürich."
)
QUESTION = "What is the capital of France?"
EVERY = 37
NEW = 40

path = pathlib.Path(os.environ.get("SMOLLM2_GGUF", "no file is named by SMOLLM2_GGUF"))
try:
    import accelerate  # noqa: F401
    import gguf  # noqa: F401
except ImportError as error:
    print(f"cannot record: {error!r}", file=sys.stderr)
    sys.exit(CANNOT_RUN_HERE)
if not path.is_file():
    print(f"cannot record: {path}", file=sys.stderr)
    sys.exit(CANNOT_RUN_HERE)

tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
model = AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
).eval()
tokens = np.array(tokenizer(SENTENCE)["input_ids"])[None]
chat = [{"role": "user", "content": QUESTION}]
prompt = np.array(
    tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=False
    )
)[None]
settings = GenerationConfig(
    do_sample=False,
    max_new_tokens=NEW,
    output_logits=True,
    return_dict_in_generate=True,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.eos_token_id,
)
with torch.no_grad():
    logits = model(torch.from_numpy(tokens)).logits[0].numpy()
    done = model.generate(
        torch.from_numpy(prompt),
        attention_mask=torch.ones(prompt.shape),
        generation_config=settings,
    )
best = torch.cat(done.logits).topk(2).values
generated = done.sequences[0, prompt.shape[1] :].numpy()
print(tokenizer.decode(prompt[0]), tokenizer.decode(generated), file=sys.stderr)
save(
    __file__,
    SEED,
    {
        "answer": np.frombuffer(
            tokenizer.decode(generated, skip_special_tokens=True).encode(), np.uint8
        ),
        "tokens": tokens,
        "logits": logits[:, ::EVERY],
        "best": logits.argmax(axis=1),
        "largest": np.abs(logits).max(),
        "prompt": prompt,
        "generated": generated[None],
        "gaps": (best[:, 0] - best[:, 1]).numpy()[None],
    },
)
