"""Published models by name."""

from mmjax.models.config import DecoderConfig, ViTConfig


def clip_vit_l14(image_size: int = 224, layers: int = 24) -> ViTConfig:
    """OpenAI's CLIP ViT-L/14 (arXiv:2103.00020, table 20). Chain-of-Sight builds 23 of the 24 blocks: the last one is never read."""
    return ViTConfig(image_size=image_size, patch_size=14, width=1024, layers=layers, heads=16, mlp_width=4096)


def vicuna_7b() -> DecoderConfig:
    """Vicuna-7B v1.5, which has Llama-2-7B's shapes (arXiv:2307.09288)."""
    return DecoderConfig(vocabulary=32_000, width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_width=11_008)


def llama3_8b() -> DecoderConfig:
    """Llama-3-8B (arXiv:2407.21783, table 3)."""
    return DecoderConfig(
        vocabulary=128_256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, mlp_width=14_336, rope_theta=500_000.0
    )
