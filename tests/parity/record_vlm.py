"""A whole Chain-of-Sight model: CLIP and Llama (transformers) with the resampler between them. The loss of the text, and gradients."""

import numpy as np
import torch
from recording import gradients, randomize, save, weights
from torch_resampler import Resampler
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

SEED = 5


class VisionLanguageModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            attn_implementation="eager",
        )
        decoder = LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            attn_implementation="eager",
        )
        self.vision = CLIPVisionModel(vision)
        self.connector = Resampler(
            [4, 2], [2, 4], levels=2, width=16, head_dim=8, mlp_width=24, output_width=16
        )
        self.decoder = LlamaForCausalLM(decoder)

    def forward(self, pixels, tokens, labels):
        """pixels [B, 3, h, w]; tokens, labels [B, t] of the text after the image, labels -100 where there is no loss."""
        hidden = self.vision(pixels, output_hidden_states=True).hidden_states
        visual = self.connector([hidden[2][:, 1:], hidden[3][:, 1:]])
        embeddings = torch.cat([visual, self.decoder.model.embed_tokens(tokens)], dim=1)
        labels = torch.cat([labels.new_full(visual.shape[:2], -100), labels], dim=1)
        return self.decoder(inputs_embeds=embeddings, labels=labels)


model = VisionLanguageModel().eval()
randomize(model, SEED)
generator = np.random.default_rng(SEED)
images = generator.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
pixels = (images / np.float32(255) - np.float32(OPENAI_CLIP_MEAN)) / np.float32(OPENAI_CLIP_STD)
tokens = generator.integers(0, 20, (3, 9))
labels = np.where(generator.random((3, 9)) < 0.6, tokens, -100)
output = model(
    torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(tokens), torch.from_numpy(labels)
)
output.loss.backward()
results = {"logits": output.logits.detach().numpy(), "loss": output.loss.detach().numpy()}
save(
    __file__,
    SEED,
    {"images": images, "tokens": tokens, "labels": labels}
    | results
    | weights(model)
    | gradients(model),
)
