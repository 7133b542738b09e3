"""CLIP's vision encoder (transformers), with its own image preprocessing: hidden states after every block, and gradients."""

import numpy as np
import torch
from recording import gradients, randomize, save, weights
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

SEED = 1

config = CLIPVisionConfig(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=42,  # a grid of 7 x 7
    patch_size=6,
    attn_implementation="eager",
)
model = CLIPVisionModel(config).eval()
randomize(model, SEED)

generator = np.random.default_rng(SEED)
images = generator.integers(0, 256, (2, 42, 42, 3), dtype=np.uint8)
processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)
pixels = processor(list(images), return_tensors="pt")["pixel_values"]
hidden = model(pixels, output_hidden_states=True).hidden_states

# The gradient of a fixed random sum of what Chain-of-Sight reads: the patches after two of the blocks.
probe = generator.normal(size=(2, 2, 49, 24)).astype(np.float32)
(torch.from_numpy(probe) * torch.stack([hidden[1][:, 1:], hidden[3][:, 1:]])).sum().backward()

results = {f"hidden:{block}": state.detach().numpy() for block, state in enumerate(hidden)}
save(
    __file__,
    SEED,
    {"images": images, "pixels": pixels.numpy(), "probe": probe}
    | results
    | weights(model)
    | gradients(model),
)
