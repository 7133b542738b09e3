"""The decoder: the modules of transformers' LlamaModel, run block by block, and the head with the loss."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from torch_baseline.attention import NAME
from torch_baseline.blocks import Ways

# What a decoder must not have.
UNSUPPORTED = ("qkv_bias", "output_bias", "mlp_bias", "query_key_norm", "sliding_window", "experts")


class DecoderBlock(nn.Module):
    """A LlamaDecoderLayer with the arguments that it is given here, in order."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, mask: Tensor | None, cosines: Tensor, sines: Tensor) -> Tensor:
        out = self.layer(
            x, attention_mask=mask, position_embeddings=(cosines, sines), use_cache=False
        )
        return out[0] if isinstance(out, tuple) else out  # where releases differ


class Decoder(nn.Module):
    """Raises ValueError for what Llama has not."""

    def __init__(self, c: dict[str, Any], depth: int):
        super().__init__()
        if odd := [name for name in UNSUPPORTED if c[name]]:
            raise ValueError(
                f"the decoder has {', '.join(odd)}, which PyTorch's side of this benchmark has not"
            )
        config = LlamaConfig(
            vocab_size=c["vocabulary"],
            hidden_size=c["width"],
            intermediate_size=c["mlp_width"],
            num_hidden_layers=depth,
            num_attention_heads=c["heads"],
            num_key_value_heads=c["kv_heads"],
            head_dim=c["head_dim"],
            rms_norm_eps=c["norm_epsilon"],
            max_position_embeddings=c["context_length"] or 8192,
            rope_parameters=rope(c),
            attention_bias=False,
            mlp_bias=False,
            pad_token_id=None,
            attn_implementation=NAME,
        )
        llama = LlamaModel(config)
        self.embed_tokens, self.norm, self.rotary = llama.embed_tokens, llama.norm, llama.rotary_emb
        self.layers = nn.ModuleList(DecoderBlock(layer) for layer in llama.layers)
        self.lm_head = Head(
            None if c["tie_word_embeddings"] else nn.Linear(c["width"], c["vocabulary"], bias=False)
        )

    def forward(
        self, x: Tensor, positions: Tensor | None, mask: Tensor | None, ways: Ways
    ) -> Tensor:
        """Embeddings [B, T, D] to the states after the last block, before the norm. Positions: None for 0, 1, ..."""
        positions = (
            torch.arange(x.shape[1], device=x.device)[None] if positions is None else positions
        )
        cosines, sines = self.rotary(x, positions)
        for layer in self.layers:
            x = ways.block(layer, x, mask, cosines, sines)
        return x

    def loss(self, x: Tensor, chosen: Tensor | None, targets: Tensor, ways: Ways) -> Tensor:
        """Sum of the cross entropy at the chosen positions of all rows (None: at every one) of the states that `forward` gives."""
        return ways.part(self.lm_head, self.norm, self.embed_tokens.weight, x, chosen, targets)


class Head(nn.Module):
    """Final norm, logits of chosen positions, cross entropy in float32."""

    def __init__(self, linear: nn.Linear | None):
        super().__init__()
        self.linear = linear

    def forward(
        self, norm: nn.Module, table: Tensor, x: Tensor, chosen: Tensor | None, targets: Tensor
    ) -> Tensor:
        rows = x.flatten(0, 1)
        rows = norm(rows if chosen is None else rows[chosen])
        logits = F.linear(rows, table) if self.linear is None else self.linear(rows)
        return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum")


def rope(c: dict[str, Any]) -> dict[str, Any]:
    """transformers' form of the rotary settings. Raises ValueError for rescalings other than Llama 3's."""
    scaling = c["rope_scaling"]
    if scaling is None:
        return {"rope_type": "default", "rope_theta": c["rope_theta"]}
    if scaling["kind"] != "llama3":
        raise ValueError(
            f"rotary positions are rescaled by {scaling['kind']!r}, which PyTorch's side of this benchmark has not"
        )
    return {
        "rope_type": "llama3",
        "rope_theta": c["rope_theta"],
        "factor": scaling["factor"],
        "low_freq_factor": scaling["low_frequency_factor"],
        "high_freq_factor": scaling["high_frequency_factor"],
        "original_max_position_embeddings": scaling["original_length"],
    }
