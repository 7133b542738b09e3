"""AdamW (torch) with clipping, a cosine schedule and parameter groups: the parameters after each of five updates."""

import numpy as np
import torch
from recording import save

SEED = 6
STEPS = 5

generator = np.random.default_rng(SEED)
shapes = {
    "decoder/lm_head/kernel": (6, 5),
    "vision/patch/kernel": (4, 3),
    "decoder/norm/scale": (6,),
}
parameters = {
    path: torch.nn.Parameter(torch.from_numpy(generator.normal(size=shape).astype(np.float32)))
    for path, shape in shapes.items()
}
arrays = {f"0/{path}": parameter.detach().numpy().copy() for path, parameter in parameters.items()}
groups = [
    {"params": [parameters["decoder/lm_head/kernel"]], "weight_decay": 0.1},
    {"params": [parameters["vision/patch/kernel"]], "weight_decay": 0.3, "lr": 0.01 * 0.25},
    {"params": [parameters["decoder/norm/scale"]], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-6)
# The second group's lower bound is scaled with its rate.
lower_bounds = (0.001, 0.00025, 0.001)
for step in range(STEPS):
    for group, peak, lower_bound in zip(
        optimizer.param_groups, (0.01, 0.0025, 0.01), lower_bounds, strict=False
    ):
        group["lr"] = lower_bound + (peak - lower_bound) * 0.5 * (1 + np.cos(np.pi * step / STEPS))
    for path, parameter in parameters.items():
        gradient = generator.normal(size=shapes[path]).astype(np.float32) * 0.1 * (step + 1)
        parameter.grad = torch.from_numpy(gradient)
        arrays[f"{step}/gradient:{path}"] = gradient.copy()
    torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    optimizer.step()
    arrays |= {
        f"{step + 1}/{path}": parameter.detach().numpy().copy()
        for path, parameter in parameters.items()
    }
save(__file__, SEED, arrays)
