"""The Chain-of-Sight resampler (plain PyTorch): two levels, three scales."""

import numpy as np
import torch
from recording import gradients, randomize, save, weights
from torch_resampler import Resampler

SEED = 4

model = Resampler(
    [8, 4, 2], [3, 8, 16], levels=2, width=16, head_dim=4, mlp_width=24, output_width=12
)
randomize(model, SEED)
generator = np.random.default_rng(SEED)
features = generator.normal(size=(2, 2, 64, 16)).astype(np.float32)  # level, image, patch
probe = generator.normal(size=(2, 27, 12)).astype(np.float32)
tokens = model(list(torch.from_numpy(features)))
(tokens * torch.from_numpy(probe)).sum().backward()
save(
    __file__,
    SEED,
    {"features": features, "probe": probe, "tokens": tokens.detach().numpy()}
    | weights(model)
    | gradients(model),
)
