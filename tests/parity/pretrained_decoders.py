"""Decoders of transformers in small: settings of every family, logits, and greedy generation. For record_pretrained.py."""

import numpy as np
import torch
import transformers
from recording import randomize

LENGTH = 48
PROMPT, NEW = 8, 64
CLEAR = 1e-3  # by how much of the largest logit the chosen token leads, at every step of a recorded generation
VARIETY = 6  # how many different tokens it has at least
CANDIDATES = 64
GROWING = (24, LENGTH, PROMPT + NEW)  # lengths of texts for frequencies that depend on it

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# A head of 16 has wavelengths from 6 to 20,000 positions, so that each rule about them finds some on both sides.
WIDE = SMALL | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def rope(
    kind: str = "default", theta: float = 10_000.0, **others: object
) -> dict[str, dict[str, object]]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **others}}


# Name of the case: family, settings.
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama_plain": ("Llama", SMALL | {"num_key_value_heads": 4, "rms_norm_eps": 1e-2}),
    "llama_groups_of_3": (
        "Llama",
        SMALL | rope(theta=500_000.0) | {"hidden_size": 24, "num_attention_heads": 6},
    ),
    "llama_groups_of_8": (
        "Llama",
        SMALL
        | {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-5},
    ),
    "llama_tied": ("Llama", SMALL | {"tie_word_embeddings": True}),
    "llama_biases": ("Llama", SMALL | {"attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    "llama_bfloat16": ("Llama", SMALL | {"dtype": "bfloat16"}),
    "llama_llama3": (
        "Llama",
        WIDE
        | rope(
            "llama3",
            50_000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=128,
        )
        | {"tie_word_embeddings": True},
    ),
    "llama_linear": (
        "Llama",
        WIDE
        | rope("linear", factor=4.0)
        | {"num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5},
    ),
    "llama_dynamic": (
        "Llama",
        WIDE | rope("dynamic", factor=2.0) | {"max_position_embeddings": 32},
    ),
    "llama_yarn": ("Llama", WIDE | rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama_yarn_settings": (
        "Llama",
        WIDE
        | rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=32,
            attention_factor=1.3,
            beta_fast=8.0,
            beta_slow=0.5,
            truncate=False,
        ),
    ),
    "mistral_window": ("Mistral", SMALL | {"sliding_window": 7}),
    "mistral_whole": (
        "Mistral",
        SMALL
        | rope(theta=1_000_000.0)
        | {"sliding_window": None, "head_dim": 10, "rms_norm_eps": 1e-5},
    ),
    "qwen2_untied": ("Qwen2", SMALL | rope(theta=1_000_000.0)),
    "qwen2_tied": (
        "Qwen2",
        SMALL | {"tie_word_embeddings": True, "sliding_window": 7, "max_window_layers": 0},
    ),
    "qwen2_yarn": (
        "Qwen2",
        SMALL
        | rope("yarn", 1_000_000.0, factor=4.0, original_max_position_embeddings=64)
        | {"num_attention_heads": 1, "num_key_value_heads": 1},
    ),
    "qwen2_window": (
        "Qwen2",
        SMALL | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0},
    ),
    "qwen3": ("Qwen3", SMALL | rope(theta=1_000_000.0) | {"head_dim": 8}),
    "qwen3_tied_biases": (
        "Qwen3",
        SMALL | {"head_dim": 6, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "mistral_yarn": (
        "Mistral",
        WIDE
        | rope("yarn", factor=4.0, original_max_position_embeddings=64)
        | {"sliding_window": 11},
    ),
    "qwen2_groups_of_8": (
        "Qwen2",
        SMALL | {"num_attention_heads": 8, "num_key_value_heads": 1, "hidden_size": 32},
    ),
    "qwen3_yarn": (
        "Qwen3",
        WIDE | rope("yarn", 1_000_000.0, factor=4.0, original_max_position_embeddings=32),
    ),
    "mixtral_groups_of_1": (
        "Mixtral",
        SMALL | {"num_key_value_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 1},
    ),
    "mixtral": ("Mixtral", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral_window": (
        "Mixtral",
        SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
    ),
}


def make_decoder(kind: str, settings: dict[str, object], seed: int) -> torch.nn.Module:
    """A decoder with random weights, in the dtype of the settings."""
    config = getattr(transformers, f"{kind}Config")(
        **({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | settings)
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    randomize(model, seed)
    return model.to(config.dtype or torch.float32)


@torch.no_grad()
def record_decoder(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Logits, and greedy generation."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, model.config.vocab_size, (2, LENGTH))
    if model.config.rope_parameters["rope_type"] == "dynamic":
        # With a cache, transformers keeps keys that were turned by the frequencies of a shorter text; recorded is the function of the text.
        row = generator.integers(0, model.config.vocab_size, (1, PROMPT + NEW))
        texts = {length: torch.from_numpy(row[:, :length]) for length in GROWING}
        return {"tokens": row} | {
            f"logits:{length}": model(text, use_cache=False).logits.numpy()
            for length, text in texts.items()
        }
    logits = model(torch.from_numpy(tokens)).logits.numpy()
    return {"tokens": tokens, "logits": logits} | _generate(model, generator)


def _generate(model: torch.nn.Module, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """The first of some random prompts whose greedy continuation is clear at every step and has some variety."""
    model.generation_config.eos_token_id = None  # else generation could end early
    settings = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        use_cache=True,
    )
    prompts = generator.integers(0, model.config.vocab_size, (CANDIDATES, PROMPT))
    done = model.generate(
        torch.from_numpy(prompts),
        attention_mask=torch.ones(prompts.shape),
        generation_config=settings,
    )
    logits = torch.stack(done.logits, dim=1)
    best = logits.topk(2).values
    gaps = ((best[..., 0] - best[..., 1]) / logits.abs().amax((1, 2))[:, None]).numpy()
    generated = done.sequences[:, PROMPT:].numpy()
    assert generated.shape == (CANDIDATES, NEW)
    for row in range(CANDIDATES):
        if gaps[row].min() > CLEAR and len(np.unique(generated[row])) > VARIETY:
            return {
                name: array[row : row + 1]
                for name, array in (("prompt", prompts), ("generated", generated), ("gaps", gaps))
            }
    raise AssertionError("no prompt has a clear continuation")
