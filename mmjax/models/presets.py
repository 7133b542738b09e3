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


def smollm2_135m() -> DecoderConfig:
    """SmolLM2-135M (arXiv:2502.02737), which has Llama's form."""
    return DecoderConfig(
        vocabulary=49_152,
        width=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        mlp_width=1536,
        rope_theta=100_000.0,
        context_length=8192,
        tied_head=True,
    )


def dinov2_small(image_size: int = 518, layers: int = 12) -> ViTConfig:
    """DINOv2 ViT-S/14 (arXiv:2304.07193); its position table is that of pictures of 518 pixels."""
    return ViTConfig(
        image_size=image_size,
        patch_size=14,
        width=384,
        layers=layers,
        heads=6,
        mlp_width=1536,
        activation="gelu",
        norm_epsilon=1e-6,
        class_token=True,
        embedding_norm=False,
        patch_bias=True,
        layer_scale=True,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )
