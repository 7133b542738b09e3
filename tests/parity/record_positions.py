"""Bicubic interpolation of position tables (torch), corners aligned and not."""

import numpy as np
import torch
from recording import save

SEED = 3

generator = np.random.default_rng(SEED)
arrays = {}
for before, after in ((16, 32), (16, 24), (7, 11), (8, 5), (5, 5), (1, 3), (3, 1)):
    table = generator.normal(size=(before, before, 2)).astype(np.float32)
    grid = torch.from_numpy(table).permute(2, 0, 1)[None]
    arrays[f"{before}-{after}/table"] = table.reshape(before**2, 2)
    for rule, align_corners in (("aligned", True), ("half_pixel", False)):
        resized = torch.nn.functional.interpolate(
            grid, size=(after, after), mode="bicubic", align_corners=align_corners
        )[0]
        arrays[f"{before}-{after}/{rule}"] = resized.permute(1, 2, 0).reshape(after**2, 2).numpy()
save(__file__, SEED, arrays)
