"""Runs transformers' Dinov2Model on a folder, in the oracle's environment: FOLDER, a reference with `image` and `tokens`, OUTPUT.

What was missing or unexpected in the folder is an error.
"""

import sys

import numpy as np
import torch
from transformers import AutoImageProcessor, Dinov2Model

folder, reference, output = sys.argv[1:]
model, loading = Dinov2Model.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
)
assert not any(loading.values()), loading
with np.load(reference) as file:
    image, tokens = file["image"], file["tokens"]
processor = AutoImageProcessor.from_pretrained(folder)
pixels = processor(image, do_resize=False, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    result = model.eval()(pixels, output_hidden_states=True)
states = {
    "hidden:8": result.hidden_states[8],
    "hidden:10": result.hidden_states[10],
    "last": result.last_hidden_state,
}
np.savez(output, **{key: state[0, tokens].numpy() for key, state in states.items()})
