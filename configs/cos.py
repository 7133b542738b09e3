"""Chain-of-Sight (arXiv:2407.15819): pre-train on few visual tokens, then let them grow for fine-tuning.

    python -m mmjax.main --config=configs/cos.py                     a small model on easy-vqa, from scratch, on any computer
    python -m mmjax.main --config=configs/cos.py:smollm2             the same between two published models (docs/weights.md)
    python -m mmjax.main --config=configs/cos.py:7b --mode=plan      the paper's CoS-7B: what it costs
    python -m mmjax.main --config=configs/cos.py:7b --config.stages.pretrain.data.sources.captions.path=... ...

Most of the cost of pre-training is the language model reading visual tokens. Chain-of-Sight makes few of them: an image is a grid of
patches, a *scale* cuts the grid into square windows, and in each window a few learned queries read the features of the window's patches.
One global window and sixteen local ones give 16 + 64 = 80 tokens. For fine-tuning the image is enlarged and the windows get smaller, so
there are 16 times as many; each new scale starts as a copy of a scale that was trained (its parent), so there is no second pre-training.

`notes` in each recipe say what is taken from the paper, what is inferred and what had to be substituted.

Variants:
    (none)          16 + 4 = 20 tokens of a small model grow to 84
    few             the same model keeps its 20 tokens                          (control: what growing brings)
    many            84 tokens in both stages                                    (control: what the cheap pre-training costs)
    single          one window, 84 tokens in both stages                        (control: what the windows bring)
    single-few      one window, 20 tokens in both stages
    scratch         84 tokens, no pre-training                                  (control: what pre-training brings)
    captions        the small model on images and captions of your own: --config.data.sources.captions.path=FILE.jsonl
    smollm2         20 tokens grow to 84, between DINOv2-small and SmolLM2-135M with their published weights
    smollm2-stamps  the same, pre-trained also on 785 images with captions written by hand
    7b, 8b          CoS-7B (Vicuna-7B) and CoS-8B (Llama-3-8B): 80 tokens grow to 1296
    cos80-1296 ...  every other setting of the paper's tables at the size of 7b
    resampler336, resampler80, linear256    the paper's baselines
"""

# ruff: noqa: C408 - settings read best as keywords

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict, config_dict

from mmjax.models import presets
from mmjax.models.config import DecoderConfig
from mmjax.recipe.schema import choose

Settings = dict[str, Any]
"""A part of a recipe, by the names of its fields."""


def scales(
    image_size: int,
    windows: tuple[int, ...],
    queries: tuple[int, ...],
    parents: tuple[int, ...] = (),
) -> Settings:
    """The visual tokens of a stage, as its own part of the model.

    Args:
        windows: side in patches of each scale's windows, coarse to fine.
        queries: visual tokens of each scale, over all of its windows.
        parents: which scale of the stage before each of them begins as.
    """
    connector = dict(windows=windows, queries=queries, parents=parents)
    return dict(vision=dict(image_size=image_size), connector=connector)


GROW = ("inflate", "resize_positions")
CAPTIONS_AND_QUESTIONS = dict(kind="easy_vqa", tasks=("caption", "question"))
QUESTIONS = dict(kind="easy_vqa", tasks=("question",))


# The small model, of which everything is trained from scratch on easy-vqa. Its grid of 8 x 8 patches becomes 16 x 16.

SMALL20 = scales(32, windows=(8, 2), queries=(4, 16))
SMALL84 = scales(64, windows=(16, 8, 2), queries=(4, 16, 64), parents=(0, 0, 1))


def default() -> ConfigDict:
    """16 + 4 = 20 tokens grow to 84."""
    return small(
        "the paper's scaling by 4 (resolution), at the size of easy-vqa",
        pretrain=small_pretrain(SMALL20),
        finetune=small_finetune(SMALL84),
    )


def few() -> ConfigDict:
    """20 tokens in both stages."""
    return small(
        "control: the tokens do not grow",
        pretrain=small_pretrain(SMALL20),
        finetune=small_finetune(scales(64, (16, 4), (4, 16), parents=(0, 1))),
    )


def many() -> ConfigDict:
    """84 tokens in both stages."""
    return small(
        "control: many from the start",
        pretrain=small_pretrain(scales(32, (8, 4, 1), (4, 16, 64))),
        finetune=small_finetune(scales(64, (16, 8, 2), (4, 16, 64), parents=(0, 1, 2))),
    )


def single() -> ConfigDict:
    """One window, 84 tokens in both stages."""
    return small(
        "control: the plain resampler, many tokens",
        pretrain=small_pretrain(scales(32, (8,), (84,))),
        finetune=small_finetune(scales(64, (16,), (84,), parents=(0,))),
    )


def single_few() -> ConfigDict:
    """One window, 20 tokens in both stages."""
    return small(
        "control: the plain resampler, few tokens",
        pretrain=small_pretrain(scales(32, (8,), (20,))),
        finetune=small_finetune(scales(64, (16,), (20,), parents=(0,))),
    )


def scratch() -> ConfigDict:
    """84 tokens, and no pre-training."""
    return small(
        "control: no pre-training",
        finetune=small_finetune(scales(64, (16, 8, 2), (4, 16, 64)), transitions=()),
    )


def captions() -> ConfigDict:
    """Images and captions of your own, a JSON object a line: {"image": "cat.png", "text": "a cat asleep"}."""
    # Twice the pixels of easy-vqa in the same number of patches.
    few, grown = small_pretrain(SMALL20), small_finetune(SMALL84)
    few["model"] = scales(64, windows=(8, 2), queries=(4, 16))
    grown["model"] = scales(128, windows=(16, 8, 2), queries=(4, 16, 64), parents=(0, 0, 1))
    for stage, steps in ((few, 400), (grown, 100)):
        stage["steps"] = steps
        stage["optimizer"]["warmup_steps"] = steps // 20
        del stage["data"]  # one for both
    config = small("the paper's scaling by 4 (resolution)", pretrain=few, finetune=grown)
    config.data = dict(
        sources=dict(captions=dict(kind="jsonl", path=given())),
        text_length=96, template="plain", holdout=2,
    )  # fmt: skip
    config.model.vision.patch_size = 8
    config.evaluation.tasks = ("captions",)
    config.notes.data = "your own"
    return config


def small_pretrain(tokens: Settings) -> Settings:
    """Captions and questions."""
    return dict(
        model=tokens,
        data=dict(
            sources=dict(easy_vqa=CAPTIONS_AND_QUESTIONS),
            text_length=36, template="plain", flip=True, holdout=200,
        ),
        optimizer=dict(
            learning_rate=5e-4, warmup_steps=60, final_scale=0.03, beta2=0.98,
            weight_decay=0.02, clip_norm=1.0,
        ),
        steps=1500,
        batch_size=16,
    )  # fmt: skip


def small_finetune(tokens: Settings, transitions: tuple[str, ...] = GROW) -> Settings:
    """Questions alone."""
    return dict(
        model=tokens,
        data=dict(
            sources=dict(easy_vqa=QUESTIONS),
            text_length=112, template="plain", flip=True, holdout=200,
        ),
        optimizer=dict(
            learning_rate=7e-4, warmup_steps=60, final_scale=0.03, beta2=0.98,
            weight_decay=0.02, clip_norm=1.0,
        ),
        transitions=transitions,
        steps=250,
        batch_size=16,
    )  # fmt: skip


def small(tokens: str, **stages: Settings) -> ConfigDict:
    """A recipe of the small model; `tokens` is the note about its visual tokens."""
    return recipe(
        stages,
        model=dict(
            vision=dict(
                patch_size=4, width=128, layers=3, heads=4, mlp_width=512, activation="gelu",
                norm="rms", class_token=False, embedding_norm=False, weight_std=fan_in(),
                embedding_std=0.5,
            ),
            connector=dict(
                kind="resampler", feature_layers=(3,), width=128, head_dim=32, mlp_width=512,
                norm="rms", weight_std=fan_in(), query_std=0.5,
            ),
            decoder=dict(
                vocabulary=None,  # as many as the tokenizer needs
                width=128, layers=3, heads=4, kv_heads=4, head_dim=32, mlp_width=320,
                weight_std=fan_in(), embedding_std=0.5,
            ),
            compute_dtype="float32", remat="none", unroll=3,
        ),
        tokenizer=dict(kind="words"),
        evaluation=dict(tasks=("easy_vqa",)),
        notes=dict(tokens=tokens, data="substituted: easy-vqa, which any computer can train on"),
    )  # fmt: skip


def fan_in() -> config_dict.FieldReference:
    """No standard deviation: 1 / sqrt(fan in)."""
    return config_dict.placeholder(float)


# Between two published models: SmolLM2-135M reads images through DINOv2-small. Both are frozen at first, then the language model is adapted
# by LoRA.


def smollm2() -> ConfigDict:
    """20 tokens grow to 84. Needs `python -m mmjax.fetch smollm2 dinov2-small`."""
    return published(
        "substituted: easy-vqa",
        pretrain=published_pretrain(easy_vqa=CAPTIONS_AND_QUESTIONS),
        finetune=published_finetune(),
    )


def smollm2_stamps() -> ConfigDict:
    """The same, pre-trained on images with captions, too. Needs `python -m mmjax.fetch tuxpaint-stamps` beside it."""
    folder = "fetched:tuxpaint-stamps"
    stamps = dict(kind="jsonl", path=f"{folder}/captions.jsonl", image_dir=folder)
    return published(
        "substituted: easy-vqa and the stamps of Tux Paint",
        pretrain=published_pretrain(easy_vqa=CAPTIONS_AND_QUESTIONS, stamps=stamps),
        finetune=published_finetune(),
    )


def published_pretrain(**sources: Settings) -> Settings:
    """The connector is trained."""
    return dict(
        model=scales(112, windows=(8, 2), queries=(4, 16)),
        data=dict(sources=sources, text_length=192, template="chat", flip=True, holdout=50),
        optimizer=dict(
            learning_rate=1e-3, warmup_steps=30, final_scale=0.05, weight_decay=0.01, clip_norm=1.0
        ),
        init_from=dict(vision="fetched:dinov2-small", decoder="fetched:smollm2"),
        trainable=("connector/*",),
        steps=600,
        batch_size=16,
        gradient_accumulation_steps=4,  # a laptop cannot hold the activations of 16 rows at once
    )


def published_finetune() -> Settings:
    """The connector and LoRA are trained, on questions alone."""
    tokens = scales(224, windows=(16, 8, 2), queries=(4, 16, 64), parents=(0, 0, 1))
    sources = dict(easy_vqa=QUESTIONS)
    return dict(
        model=dict(lora=dict(rank=16), **tokens),
        data=dict(sources=sources, text_length=256, template="chat", flip=True, holdout=50),
        optimizer=dict(
            learning_rate=5e-4, warmup_steps=30, final_scale=0.05, weight_decay=0.01, clip_norm=1.0
        ),
        transitions=("inflate", "resize_positions_half_pixel", "attach_lora"),
        # The encoder has not changed, and its own position table is finer than the resized one.
        init_from=dict(vision="fetched:dinov2-small"),
        trainable=("connector/*", "*/lora_a", "*/lora_b"),
        steps=400,
        batch_size=16,
        gradient_accumulation_steps=4,
    )


def published(data: str, pretrain: Settings, finetune: Settings) -> ConfigDict:
    """A recipe between the two models; `data` is the note about what it reads."""
    return recipe(
        dict(pretrain=pretrain, finetune=finetune),
        model=dict(
            vision=dataclasses.asdict(presets.dinov2_small(layers=10)),
            connector=resampler((8, 10), width=384),
            decoder=dataclasses.asdict(presets.smollm2_135m()),
            lora=dict(rank=0, alpha=32.0),
            compute_dtype="float32",
            remat="none",
            unroll=1,
        ),
        tokenizer=dict(kind="huggingface", path="fetched:smollm2"),
        evaluation=dict(
            tasks=("easy_vqa",), batch_size=16, max_new_tokens=8, untrained=False, limit=100
        ),
        notes=dict(
            weights="substituted: DINOv2-small for CLIP ViT-L/14, SmolLM2-135M-Instruct for Vicuna-7B",
            features="blocks 8 and 10 of 12: the last ones of these weights were trained on for another task",
            data=data,
            evaluation="of the first 100 test images only; --config.evaluation.limit=none scores all",
        ),
    )


# The paper's size: CLIP ViT-L/14, and a frozen language model that fine-tuning adapts by LoRA on every linear map. The grid of 16 x 16
# patches at 224 pixels becomes 32 x 32 at 448. The user says where the weights and the data are.

COS80 = scales(224, windows=(16, 4), queries=(16, 64))
COS48 = scales(224, windows=(16, 4), queries=(16, 32))
COS32 = scales(224, windows=(16, 4), queries=(16, 16))
COS336 = scales(224, windows=(16, 8, 2), queries=(16, 64, 256))
COS1296 = scales(448, windows=(32, 8, 2), queries=(16, 256, 1024), parents=(0, 0, 1))
ABLATION = "paper, token-scaling ablation"
FEWER = "inferred: 16 global queries and 16 windows of n make the published 32, 48 and 80 tokens, and 272 + 256 n the 528, 784 and 1296"


def cos_7b(
    pretrain: Settings = COS80, finetune: Settings = COS1296, tokens: str = ABLATION
) -> ConfigDict:
    """CoS-7B: 80 tokens grow to 1296, before Vicuna-7B. Or another row of the paper's tables; `tokens` is the note about it."""
    return large(
        presets.vicuna_7b(),
        resampler((16, 23), width=1024),
        tokens,
        pretrain=large_pretrain(pretrain),
        finetune=large_finetune(finetune),
    )


def cos_8b() -> ConfigDict:
    """CoS-8B, with Llama-3."""
    return large(
        presets.llama3_8b(),
        resampler((16, 23), width=1024),
        ABLATION,
        pretrain=large_pretrain(COS80),
        finetune=large_finetune(COS1296, template="llama3"),
    )


def plain_resampler(tokens: int) -> ConfigDict:
    """The baseline with one window over the whole grid and one feature layer."""
    return large(
        presets.vicuna_7b(),
        resampler((23,), width=1024),
        "paper: baseline",
        pretrain=large_pretrain(scales(224, (16,), (tokens,))),
        finetune=large_finetune(scales(448, (32,), (tokens,), parents=(0,))),
    )


def linear256() -> ConfigDict:
    """The baseline with a linear map: all 256 patches at 224 pixels, in both stages."""
    patches = dict(vision=dict(image_size=224))
    return large(
        presets.vicuna_7b(),
        dict(kind="linear", feature_layers=(23,)),
        "paper: baseline, 256 tokens at 224 pixels",
        pretrain=large_pretrain(patches),
        finetune=large_finetune(patches, transitions=("attach_lora",)),
    )


def large_pretrain(tokens: Settings) -> Settings:
    """Encoder and connector are trained, on captions."""
    sources = dict(captions=dict(kind="llava", path=given(), image_dir=given()))
    return dict(
        model=tokens,
        data=dict(sources=sources, text_length=128, template="plain", workers=8),
        optimizer=dict(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=65,
            weight_decay=0.0,
            clip_norm=1.0,
            groups=(dict(match="vision/*", learning_rate_scale=0.02),),
        ),
        init_from=dict(vision=given(), decoder=given()),
        trainable=("vision/*", "connector/*"),
        steps=2181,
        batch_size=256,
    )


def large_finetune(
    tokens: Settings,
    transitions: tuple[str, ...] = (*GROW, "attach_lora"),
    template: str = "vicuna_v1",
) -> Settings:
    """Encoder, connector and LoRA are trained, on conversations."""
    sources = dict(conversations=dict(kind="llava", path=given(), image_dir=given()))
    return dict(
        model=dict(lora=dict(rank=64), **tokens),
        data=dict(sources=sources, text_length=752, template=template, workers=8, skip_budget=0.1),
        optimizer=dict(
            learning_rate=2e-4,
            schedule="cosine",
            warmup_steps=156,
            weight_decay=0.0,
            clip_norm=1.0,
            groups=(
                dict(match="vision/*", learning_rate_scale=0.1),
                dict(match="connector/*", learning_rate_scale=0.1),
            ),
        ),
        transitions=transitions,
        trainable=("vision/*", "connector/*", "*/lora_a", "*/lora_b"),
        steps=5198,
        batch_size=128,
    )


def large(
    decoder: DecoderConfig, connector: Settings, tokens: str, pretrain: Settings, finetune: Settings
) -> ConfigDict:
    """A recipe of the paper's size; `tokens` is the note about its visual tokens."""
    return recipe(
        dict(pretrain=pretrain, finetune=finetune),
        model=dict(
            vision=dataclasses.asdict(presets.clip_vit_l14(layers=23)),
            connector=connector,
            decoder=dataclasses.asdict(decoder),
            lora=dict(rank=0, alpha=64.0),
            compute_dtype="bfloat16",
            remat="full",
            unroll=1,
        ),
        tokenizer=dict(kind="huggingface", path=given()),
        mesh=dict(data=1, fsdp=-1),
        notes=dict(
            tokens=tokens,
            weights="paper: those of CLIP ViT-L/14 at 224 pixels, and of the language model",
            trained="paper: 532 M trainable parameters, which are the encoder (23 blocks), the connector and LoRA of rank 64 on all linear "
            "maps; inferred: LoRA is added for fine-tuning, and the encoder is trained in both stages",
            lora="inferred: rank 64 from the 532 M; substituted: alpha 64, not published",
            optimizer="substituted: AdamW at the rates, batch sizes and steps of the authors' LLaVA-style port (1e-3 in stage 1, 2e-5 in "
            "stage 2, warm-up 3 %); 2e-5 also for the encoder in stage 1, and 2e-4 for LoRA, as is customary",
            data="substituted: LLaVA-style conversations for the 65 million image-text pairs of the paper",
            prompts="substituted: the formats of LLaVA (plain, then the language model's own); the paper's prompts are not published",
        ),
    )


# All sizes


def resampler(feature_layers: tuple[int, ...], width: int) -> Settings:
    """The paper's connector; each stage says its own windows and queries."""
    return dict(
        kind="resampler",
        feature_layers=feature_layers,
        width=width,
        head_dim=64,
        mlp_width=4 * width,
        activation="gelu",
        norm="layer",
    )


def given() -> config_dict.FieldReference:
    """A path that the user gives on the command line."""
    return config_dict.placeholder(str)


def recipe(stages: dict[str, Settings], **settings: Any) -> ConfigDict:
    """All of a recipe; what `model` holds is shared by the stages, and a stage's own is merged over it."""
    config = ConfigDict(dict(seed=0, **settings))
    config.stages = ConfigDict(sort_keys=False)  # stages run in the order in which they are written
    for name, stage in stages.items():  # one by one: a dictionary in two of them becomes two
        config.stages[name] = stage
    return config


VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "": default,
    "few": few,
    "many": many,
    "single": single,
    "single-few": single_few,
    "scratch": scratch,
    "captions": captions,
    "smollm2": smollm2,
    "smollm2-stamps": smollm2_stamps,
    "7b": cos_7b,
    "8b": cos_8b,
    # Compound scaling: twice the pixels and half the window make 16 times the tokens of a scale. The global scale has two children:
    # itself, over the larger image, and the new middle scale.
    "cos80-1296": partial(cos_7b, COS80, COS1296),
    "cos80-1104": partial(cos_7b, COS80, scales(448, (32, 16, 2), (16, 64, 1024), (0, 0, 1))),
    "cos80-528": partial(cos_7b, COS80, scales(448, (32, 8, 4), (16, 256, 256), (0, 0, 1))),
    "cos48-784": partial(cos_7b, COS48, scales(448, (32, 8, 2), (16, 256, 512), (0, 0, 1)), FEWER),
    "cos32-528": partial(cos_7b, COS32, scales(448, (32, 8, 2), (16, 256, 256), (0, 0, 1)), FEWER),
    # Resolution scaling: twice the pixels, the same windows, 4 times the tokens.
    "cos80-336": partial(cos_7b, COS80, scales(448, (32, 16, 4), (16, 64, 256), (0, 0, 1))),
    "cos32-336": partial(
        cos_7b,
        COS32,
        scales(448, (32, 16, 2), (16, 64, 256), (0, 0, 1)),
        f"{FEWER}; inferred: 16 + 64 + 256 as in cos80-336, with windows of 2 for one query each; windows (32, 8, 4) would fit, too",
    ),
    # Window scaling: the same pixels, half the window, 4 times the tokens.
    "cos80-336-224px": partial(cos_7b, COS80, scales(224, (16, 8, 2), (16, 64, 256), (0, 0, 1))),
    # Equal tokens: windows grow with the image, or nothing changes at all.
    "cos80-80": partial(cos_7b, COS80, scales(448, (32, 8), (16, 64), (0, 1))),
    "cos80-80-224px": partial(cos_7b, COS80, scales(224, (16, 4), (16, 64), (0, 1))),
    "cos336-336": partial(
        cos_7b,
        COS336,
        scales(448, (32, 16, 4), (16, 64, 256), (0, 1, 2)),
        "inferred: pre-training with the scales of cos80-336-224px, windows doubled with the image",
    ),
    "resampler336": partial(plain_resampler, 336),
    "resampler80": partial(plain_resampler, 80),
    "linear256": linear256,
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The recipe of a variant; see the top of this file."""
    return choose(variant or "", VARIANTS, "variant of configs/cos.py")()
