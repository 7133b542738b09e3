"""The prediction trajectory of a small Llama (transformers): both measures of every layer, from output_hidden_states.

The states after the embedding are not a layer's; the last of the others has been normed already.
"""

import numpy as np
import torch
from recording import randomize, save, weights
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 11
LAYERS, SAMPLES, LENGTH = 6, 3, 25

config = LlamaConfig(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    max_position_embeddings=1024,
    attn_implementation="eager",
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
)
model = LlamaForCausalLM(config).eval()
randomize(model, SEED)
tokens = np.random.default_rng(SEED).integers(0, 40, (SAMPLES, LENGTH))
with torch.no_grad():
    states = model(torch.from_numpy(tokens), output_hidden_states=True).hidden_states[1:]
    normed = [model.model.norm(state) for state in states[:-1]] + [states[-1]]
    predicted = (
        torch.stack([model.lm_head(state) for state in normed])[:, :, :-1]
        .double()
        .log_softmax(dim=-1)
    )

following = torch.from_numpy(tokens)[None, :, 1:, None].expand(LAYERS, -1, -1, 1)
probability = predicted.gather(-1, following)[..., 0].exp()
share = (probability / probability.sum(dim=-1, keepdim=True)).clamp(min=1e-6)
positions = torch.nn.functional.kl_div(
    share[-1:].log().expand_as(share), share, reduction="none"
).sum(dim=-1)
vocabulary = (
    torch.nn.functional.kl_div(
        predicted[-1:].expand_as(predicted), predicted, reduction="none", log_target=True
    )
    .sum(-1)
    .mean(-1)
)
arrays = {"tokens": tokens, "positions": positions.T.numpy(), "vocabulary": vocabulary.T.numpy()}
save(__file__, SEED, arrays | weights(model))
