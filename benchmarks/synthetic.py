"""Stages and batches of chosen sizes for benchmarks of the step: seeded numbers in the layout of real rows. Needs no data packages."""

import dataclasses

import numpy as np

from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.models import presets
from mmjax.models.config import DecoderConfig, LoRAConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.recipe.recipe import DataConfig, OptimizerConfig, Stage
from mmjax.typing import NO_IMAGE, NO_TARGET, Batch

FIRST_TOKEN = 5  # below it stand the special ones


def llama32_1b() -> DecoderConfig:
    """Llama-3.2-1B, from its config.json."""
    return dataclasses.replace(
        presets.llama32_3b(),
        width=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        head_dim=64,
        mlp_width=8192,
    )


def small() -> VLMConfig:
    """The widths of the default recipe, 20 visual tokens."""
    vision = ViTConfig(
        image_size=32, patch_size=4, width=128, layers=3, heads=4, mlp_width=512, activation="gelu", norm="rms",
        class_token=False, embedding_norm=False,
    )  # fmt: skip
    connector = ResamplerConfig(
        kind="resampler",
        windows=(8, 2),
        queries=(4, 16),
        feature_layers=(3,),
        width=128,
        head_dim=32,
        mlp_width=512,
        norm="rms",
    )
    return VLMConfig(vision, connector, small_decoder(), compute_dtype="float32", unroll=3)


def small_decoder() -> DecoderConfig:
    """The decoder of the default recipe, with a vocabulary like that of easy-vqa."""
    return DecoderConfig(
        vocabulary=296, width=128, layers=3, heads=4, kv_heads=4, head_dim=32, mlp_width=320
    )


def tiny() -> VLMConfig:
    """As little as there can be of everything; for trials, not for figures."""
    vision = ViTConfig(
        image_size=8,
        patch_size=4,
        width=16,
        layers=1,
        heads=2,
        mlp_width=16,
        class_token=False,
        embedding_norm=False,
    )
    connector = ResamplerConfig(
        kind="resampler",
        windows=(2,),
        queries=(2,),
        feature_layers=(1,),
        width=16,
        head_dim=8,
        mlp_width=16,
    )
    decoder = DecoderConfig(
        vocabulary=32, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=16
    )
    return VLMConfig(vision, connector, decoder, compute_dtype="float32")


def slice_7b() -> VLMConfig:
    """CoS-7B in its full widths with few layers: 4 of Vicuna-7B, 3 of CLIP ViT-L/14, 80 visual tokens, LoRA of rank 64."""
    return VLMConfig(
        presets.clip_vit_l14(image_size=224, layers=3),
        _resampler(feature_layers=(2, 3)),
        dataclasses.replace(presets.vicuna_7b(), layers=4),
        lora=LoRAConfig(rank=64, alpha=64.0),
    )


def whole_1b() -> VLMConfig:
    """CLIP ViT-L/14 and Llama-3.2-1B whole, 80 visual tokens, blocks recomputed in the backward pass."""
    return VLMConfig(
        presets.clip_vit_l14(image_size=224, layers=23),
        _resampler(feature_layers=(16, 23)),
        llama32_1b(),
        remat="full",
    )


def _resampler(feature_layers: tuple[int, ...]) -> ResamplerConfig:
    return ResamplerConfig(
        kind="resampler",
        windows=(16, 4),
        queries=(16, 64),
        feature_layers=feature_layers,
        width=1024,
        head_dim=64,
        mlp_width=4096,
    )


MODELS = {"tiny": tiny, "small": small, "7b-slice": slice_7b, "1b": whole_1b}
"""By name: what a shape's model is. "tiny" and "small" are for CPUs, the others for GPUs."""


def make_stage(name: str, *, images: int, text: int, batch: int) -> Stage:
    """A stage that trains a named model.

    Args:
        name: of MODELS.
        images: images a row. text: text tokens a row. batch: rows a step.

    Raises:
        ValueError: there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"there is no shape {name!r}; there are {', '.join(MODELS)}")
    model = MODELS[name]()
    trainable = ("vision/*", "connector/*", "*/lora_?") if model.lora.rank else ("*",)
    data = DataConfig(
        {"synthetic": EasyVqaSource(kind="easy_vqa")}, text_length=text, images_per_row=images
    )
    return Stage(
        name,
        model,
        data,
        OptimizerConfig(learning_rate=1e-4),
        steps=1000,
        batch_size=batch,
        trainable=trainable,
    )


def make_batch(stage: Stage, seed: int = 0) -> Batch:
    """Rows of one segment each: the images, then the text, every token of which has a target but the last."""
    random = np.random.default_rng(seed)
    rows, images, size = stage.batch_size, stage.data.images_per_row, stage.model.vision.image_size
    visual = images * stage.model.visual_tokens
    length = visual + stage.data.text_length
    place = np.arange(length)
    tokens = random.integers(FIRST_TOKEN, stage.model.decoder.vocabulary, (rows, length)).astype(
        np.int32
    )
    targets = np.where(place >= visual, np.roll(tokens, -1, axis=1), NO_TARGET)
    targets[:, -1] = NO_TARGET

    def whole(row: np.ndarray | int) -> np.ndarray:
        return np.broadcast_to(row, (rows, length)).astype(np.int32)

    return Batch(
        tokens=tokens,
        targets=targets.astype(np.int32),
        segment_ids=whole(1),
        prefix_segment_ids=whole(0),
        positions=whole(place),
        images=random.integers(0, 256, (rows, images, size, size, 3), dtype=np.uint8),
        image_mask=np.ones((rows, images), bool),
        visual_embedding_index=whole(np.where(place < visual, place, NO_IMAGE)),
    )
