"""Published models by name."""

import dataclasses

from mmjax.models.config import DecoderConfig, Llama3Scaling, ViTConfig


def clip_vit_l14(image_size: int = 224, layers: int = 24) -> ViTConfig:
    """OpenAI's CLIP ViT-L/14 (arXiv:2103.00020, table 20). Chain-of-Sight builds 23 of the 24 blocks: the last one is never read."""
    return ViTConfig(
        image_size=image_size, patch_size=14, width=1024, layers=layers, heads=16, mlp_width=4096
    )


def vicuna_7b() -> DecoderConfig:
    """Vicuna-7B v1.5, which has Llama-2-7B's shapes (arXiv:2307.09288)."""
    return DecoderConfig(
        vocabulary=32_000,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=128,
        mlp_width=11_008,
    )


def llama3_8b() -> DecoderConfig:
    """Llama-3-8B (arXiv:2407.21783, table 3)."""
    return DecoderConfig(
        vocabulary=128_256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        mlp_width=14_336,
        rope_theta=500_000.0,
    )


def llama31_8b() -> DecoderConfig:
    """Llama-3.1-8B (arXiv:2407.21783, table 3), whose rotary positions are stretched to 128k tokens."""
    return dataclasses.replace(
        llama3_8b(),
        rope_scaling=Llama3Scaling("llama3", 8.0, 1.0, 4.0, 8192),
        context_length=131_072,
    )


def llama31_70b() -> DecoderConfig:
    """Llama-3.1-70B (arXiv:2407.21783, table 3)."""
    return dataclasses.replace(llama31_8b(), width=8192, layers=80, heads=64, mlp_width=28_672)


def llama32_3b() -> DecoderConfig:
    """Llama-3.2-3B, from its config.json."""
    scaling = Llama3Scaling("llama3", 32.0, 1.0, 4.0, 8192)
    return dataclasses.replace(
        llama31_8b(),
        width=3072,
        layers=28,
        heads=24,
        mlp_width=8192,
        rope_scaling=scaling,
        tie_word_embeddings=True,
    )


def qwen3_4b() -> DecoderConfig:
    """Qwen3-4B (arXiv:2505.09388), from its config.json."""
    return DecoderConfig(
        vocabulary=151_936,
        width=2560,
        layers=36,
        heads=32,
        kv_heads=8,
        head_dim=128,
        mlp_width=9728,
        rope_theta=1_000_000.0,
        norm_epsilon=1e-6,
        context_length=40_960,
        tie_word_embeddings=True,
        query_key_norm=True,
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
        tie_word_embeddings=True,
    )


def dinov2_small(image_size: int = 518, layers: int = 12) -> ViTConfig:
    """DINOv2 ViT-S/14 (arXiv:2304.07193); its position table is that of images of 518 pixels."""
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
