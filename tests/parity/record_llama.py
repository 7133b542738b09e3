"""Llama decoders (transformers): logits, the loss of next tokens, and gradients, for three settings."""

import numpy as np
import torch
from recording import gradients, randomize, save, weights
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 2
LENGTH = 48

SETTINGS = {
    "grouped": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "tied": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "tie_word_embeddings": True,
    },
    # Wavelengths of this head run from 6 to 20,000 positions: some are kept, some stretched, some between.
    "scaled": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        }
    },
}

tokens = np.random.default_rng(SEED).integers(0, 40, (2, LENGTH))
arrays = {"tokens": tokens}
for name, changes in SETTINGS.items():
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position_embeddings=1024,
        attn_implementation="eager",
        **changes,
    )
    model = LlamaForCausalLM(config).eval()
    randomize(model, SEED)
    output = model(torch.from_numpy(tokens), labels=torch.from_numpy(tokens))
    output.loss.backward()
    arrays |= {
        f"{name}/logits": output.logits.detach().numpy(),
        f"{name}/loss": output.loss.detach().numpy(),
    }
    if name == "grouped":  # the others have the same weights; the tied one has no head
        arrays |= weights(model) | gradients(model)
save(__file__, SEED, arrays)
