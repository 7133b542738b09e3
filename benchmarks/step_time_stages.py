"""The stages of the step-time benchmark: those of configs/cos.py and configs/graft.py at the sizes of their papers, and language models."""

import dataclasses

from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.models import presets
from mmjax.models.config import DecoderConfig, Llama3Scaling, LoRAConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.recipe.recipe import DataConfig, OptimizerConfig, ParameterGroup, Stage

# Chain-of-Sight's scales, as configs/cos.py has them: pixels, windows, queries.
SCALES = {
    ("pretrain", 32): (224, (16, 4), (16, 16)),
    ("pretrain", 48): (224, (16, 4), (16, 32)),
    ("pretrain", 80): (224, (16, 4), (16, 64)),
    ("pretrain", 336): (224, (16, 8, 2), (16, 64, 256)),
    ("finetune", 336): (448, (32, 16, 4), (16, 64, 256)),
    ("finetune", 1296): (448, (32, 8, 2), (16, 256, 1024)),
}
ROWS = {
    ("pretrain", 32): 32,
    ("pretrain", 48): 32,
    ("pretrain", 80): 32,
    ("pretrain", 336): 32,
    ("finetune", 336): 16,
    ("finetune", 1296): 8,
}
READER = ("vision/*", "connector/*")
SEQUENCE = 4096
SMALL_DECODER = {
    "vocabulary": 2048,
    "width": 256,
    "layers": 2,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 64,
    "mlp_width": 688,
}
SMALL_LLAMA = SMALL_DECODER | {"kv_heads": 2}  # grouped queries stay
SMALL_VISION = {"width": 128, "layers": 2, "heads": 2, "mlp_width": 512}


def cos_stage(part: str, tokens: int, full: bool) -> Stage:
    """CoS-7B: "pretrain" with a frozen language model, "finetune" with updates of low rank in it. Small: the same grid and tokens."""
    pixels, windows, queries = SCALES[part, tokens]
    vision, decoder = presets.clip_vit_l14(image_size=pixels, layers=23), presets.vicuna_7b()
    if not full:
        vision = dataclasses.replace(vision, **SMALL_VISION)
        decoder = dataclasses.replace(decoder, **SMALL_DECODER)
    connector = ResamplerConfig(
        "resampler",
        windows,
        queries,
        feature_layers=(16, 23) if full else (1, 2),
        width=vision.width,
        head_dim=64,
        mlp_width=4 * vision.width,
    )
    tuned = part == "finetune"
    lora = LoRAConfig(rank=(64 if full else 8) if tuned else 0, alpha=64.0)
    groups = (
        (ParameterGroup("vision/*", 0.1), ParameterGroup("connector/*", 0.1))
        if tuned
        else (ParameterGroup("vision/*", 0.02),)
    )
    return make(
        f"cos_{part}",
        VLMConfig(vision, connector, decoder, lora=lora, compute_dtype=dtype(full), remat="full"),
        text=752 if tuned else 128,
        rows=ROWS[part, tokens] if full else 2,
        rate=2e-4 if tuned else 1e-3,
        trainable=(*READER, "*/lora_a", "*/lora_b") if tuned else READER,
        groups=groups,
    )


def surrogate_stage(full: bool) -> Stage:
    """The stage "encoder" of configs/graft.py: connector and late blocks of the encoder, on a frozen surrogate. Small: the small recipe."""
    if full:
        vision, late = presets.clip_vit_l14(image_size=336), 8
        decoder = dataclasses.replace(presets.llama31_8b(), replaced_layers=((17, 31),))
        rows, text, rate, remat = 8, 768, 5e-5, "full"
    else:
        vision, late = presets.dinov2_small(image_size=112, layers=10), 3
        decoder = dataclasses.replace(presets.smollm2_135m(), replaced_layers=((16, 24),))
        rows, text, rate, remat = 8, 48, 5e-4, "none"
    vision = dataclasses.replace(vision, final_norm=True, separate_last_layers=late)
    connector = MLPConfig(
        "mlp",
        (vision.layers,),
        decoder.width,
        class_token=True,
        final_norm=True,
        image_boundary_tokens=True,
    )
    model = VLMConfig(vision, connector, decoder, compute_dtype=dtype(full), remat=remat)
    return make(
        "surrogate",
        model,
        text,
        rows,
        rate,
        trainable=("connector/*", "vision/final_norm/*", "vision/separate_last_layers/*"),
    )


def llama32_1b() -> DecoderConfig:
    """Llama-3.2-1B, from its config.json."""
    sizes = {
        "width": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "head_dim": 64,
        "mlp_width": 8192,
    }
    return dataclasses.replace(
        presets.llama32_3b(), rope_scaling=Llama3Scaling("llama3", 32.0, 1.0, 4.0, 8192), **sizes
    )


def text_stage(size: str, full: bool, memory: float = 0.0) -> Stage:
    """Text alone, all of the language model trained: "1b", or of "8b-slice" as many layers as fit into `memory` bytes."""
    decoder = llama32_1b() if size == "1b" else presets.llama31_8b()
    text, rows = (SEQUENCE, 2) if full else (512, 2)
    if not full:
        decoder = dataclasses.replace(decoder, **SMALL_LLAMA)
    stage = language_stage(f"llm_{size}", decoder, text, rows, full)
    return fitted(stage, memory) if full and size == "8b-slice" and memory else stage


def packed_stage(full: bool) -> Stage:
    """Llama-3.2-1B on rows of samples of many lengths."""
    decoder = llama32_1b() if full else dataclasses.replace(llama32_1b(), **SMALL_LLAMA)
    return language_stage("packed", decoder, SEQUENCE if full else 512, 2, full)


def language_stage(name: str, decoder: DecoderConfig, text: int, rows: int, full: bool) -> Stage:
    """A language model without images; the model's smallest encoder and connector stand idle beside it."""
    vision = ViTConfig(image_size=14, patch_size=14, width=64, layers=1, heads=1, mlp_width=64)
    model = VLMConfig(
        vision, LinearConfig("linear", (1,)), decoder, compute_dtype=dtype(full), remat="dots"
    )
    return make(name, model, text, rows, rate=3e-4, trainable=("decoder/*",), images=0)


def make(
    name: str,
    model: VLMConfig,
    text: int,
    rows: int,
    rate: float,
    trainable: tuple[str, ...],
    groups: tuple[ParameterGroup, ...] = (),
    images: int = 1,
) -> Stage:
    """A stage with a constant learning rate: what is timed does not depend on the schedule."""
    data = DataConfig(
        sources={"random": EasyVqaSource(kind="easy_vqa")}, text_length=text, images_per_row=images
    )
    optimizer = OptimizerConfig(learning_rate=rate, schedule="constant", groups=groups)
    return Stage(name, model, data, optimizer, steps=1000, batch_size=rows, trainable=trainable)


def dtype(full: bool) -> str:
    return "bfloat16" if full else "float32"


def fitted(stage: Stage, memory: float) -> Stage:
    """The stage with as many layers of its decoder as `needed` says fit.

    Raises:
        ValueError: not even one does.
    """

    def cut(layers: int) -> Stage:
        return dataclasses.replace(
            stage,
            model=dataclasses.replace(
                stage.model, decoder=dataclasses.replace(stage.model.decoder, layers=layers)
            ),
        )

    one, two = needed(cut(1)), needed(cut(2))
    if one > memory:
        raise ValueError(f"not even one layer of {stage.name} fits into {memory / 2**30:.0f} GiB")
    return cut(min(1 + int((memory - one) / (two - one)), stage.model.decoder.layers))


def needed(stage: Stage) -> float:
    """Bytes that a step takes at most, by the more spendthrift of both sides; roughly, for what computes in bfloat16.

    A trained number: 2 + 2 for itself and its gradient in bfloat16, 16 for those, and the moments, in float32. A logit: 16, itself and its
    gradient in both dtypes and the softmax. Activations: of a block what "dots" keeps; with "full" its input, and one block whole.
    """
    from mmjax.models import parameters

    shapes = parameters.abstract(stage.model)[1]
    trained = {
        path: leaf for path, leaf in shapes.items() if parameters.matches(path, stage.trainable)
    }
    frozen = parameters.count(shapes) - parameters.count(trained)
    c, data = stage.model.decoder, stage.data
    positions = stage.batch_size * data.text_length
    tokens = positions + stage.batch_size * data.images_per_row * stage.model.visual_tokens
    products = (
        2.0
        * tokens
        * (2 * c.heads * c.head_dim + 2 * c.kv_heads * c.head_dim + 2 * c.width + 2 * c.mlp_width)
    )
    kept = {"none": 2.5 * products, "dots": products, "full": 2.0 * tokens * c.width}[
        stage.model.remat
    ]
    return (
        20.0 * parameters.count(trained)
        + 2.0 * frozen
        + 16.0 * positions * c.vocabulary
        + kept * c.depth
        + 2.5 * products
    )
