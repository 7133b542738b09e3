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
    smollm2         20 tokens grow to 84, between DINOv2-small and SmolLM2-135M with their published weights
    smollm2-stamps  the same, pre-trained also on 785 images with captions written by hand
    7b, 8b          CoS-7B (Vicuna-7B) and CoS-8B (Llama-3-8B): 80 tokens grow to 1296
    cos80-1296 ...  every other setting of the paper's tables at the size of 7b: see SETTINGS
    resampler336, resampler80, linear256    the paper's baselines
"""

# ruff: noqa: C408 - settings read best as keywords

import dataclasses

from ml_collections import ConfigDict, config_dict

from mmjax.config.load import choose
from mmjax.models import presets

# How tokens grow


@dataclasses.dataclass(frozen=True)
class Scales:
    """The visual tokens of a stage: windows (side in patches, coarse to fine), queries per scale, and where each scale grew from."""

    image_size: int
    windows: tuple[int, ...]
    queries: tuple[int, ...]
    parents: tuple[int, ...] = ()

    def model(self) -> dict:
        """As a stage's own part of the model."""
        connector = dict(windows=self.windows, queries=self.queries, parents=self.parents)
        return dict(vision=dict(image_size=self.image_size), connector=connector)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The tokens of the two stages: one row of the paper's tables."""

    pretrain: Scales
    finetune: Scales
    note: str = "paper, token-scaling ablation"


COS80 = Scales(224, windows=(16, 4), queries=(16, 64))
COS48 = Scales(224, windows=(16, 4), queries=(16, 32))
COS32 = Scales(224, windows=(16, 4), queries=(16, 16))
COS336 = Scales(224, windows=(16, 8, 2), queries=(16, 64, 256))
FEWER = "inferred: 16 global queries and 16 windows of n make the published 32, 48 and 80 tokens, and 272 + 256 n the 528, 784 and 1296"

SETTINGS = {
    # Compound scaling: twice the pixels and half the window make 16 times the tokens of a scale. The global scale has two children: itself,
    # over the larger image, and the new middle scale.
    "cos80-1296": Setting(COS80, Scales(448, (32, 8, 2), (16, 256, 1024), parents=(0, 0, 1))),
    "cos80-1104": Setting(COS80, Scales(448, (32, 16, 2), (16, 64, 1024), parents=(0, 0, 1))),
    "cos80-528": Setting(COS80, Scales(448, (32, 8, 4), (16, 256, 256), parents=(0, 0, 1))),
    "cos48-784": Setting(COS48, Scales(448, (32, 8, 2), (16, 256, 512), parents=(0, 0, 1)), FEWER),
    "cos32-528": Setting(COS32, Scales(448, (32, 8, 2), (16, 256, 256), parents=(0, 0, 1)), FEWER),
    # Resolution scaling: twice the pixels, the same windows, 4 times the tokens.
    "cos80-336": Setting(COS80, Scales(448, (32, 16, 4), (16, 64, 256), parents=(0, 0, 1))),
    "cos32-336": Setting(
        COS32,
        Scales(448, (32, 16, 2), (16, 64, 256), parents=(0, 0, 1)),
        f"{FEWER}; inferred: 16 + 64 + 256 as in cos80-336, with windows of 2 for one query each; windows (32, 8, 4) would fit, too",
    ),
    # Window scaling: the same pixels, half the window, 4 times the tokens.
    "cos80-336-224px": Setting(COS80, Scales(224, (16, 8, 2), (16, 64, 256), parents=(0, 0, 1))),
    # Equal tokens: windows grow with the image, or nothing changes at all.
    "cos80-80": Setting(COS80, Scales(448, (32, 8), (16, 64), parents=(0, 1))),
    "cos80-80-224px": Setting(COS80, Scales(224, (16, 4), (16, 64), parents=(0, 1))),
    "cos336-336": Setting(
        COS336,
        Scales(448, (32, 16, 4), (16, 64, 256), parents=(0, 1, 2)),
        "inferred: pre-training with the scales of cos80-336-224px, windows doubled with the image",
    ),
    # The plain resampler: one window over the whole grid, one feature layer.
    "resampler336": Setting(
        Scales(224, (16,), (336,)), Scales(448, (32,), (336,), parents=(0,)), "paper: baseline"
    ),
    "resampler80": Setting(
        Scales(224, (16,), (80,)), Scales(448, (32,), (80,), parents=(0,)), "paper: baseline"
    ),
}

# The same, scaled to a grid of 8 x 8 patches that becomes 16 x 16.
SMALL20 = Scales(32, windows=(8, 2), queries=(4, 16))
SMALL84 = Scales(64, windows=(16, 8, 2), queries=(4, 16, 64), parents=(0, 0, 1))
SMALL84_AT_ONCE = Scales(32, windows=(8, 4, 1), queries=(4, 16, 64))

SMALL_SETTINGS = {
    "": Setting(SMALL20, SMALL84, "the paper's scaling by 4 (resolution), at the size of easy-vqa"),
    "few": Setting(
        SMALL20, Scales(64, (16, 4), (4, 16), parents=(0, 1)), "control: the tokens do not grow"
    ),
    "many": Setting(
        SMALL84_AT_ONCE,
        dataclasses.replace(SMALL84, parents=(0, 1, 2)),
        "control: many from the start",
    ),
    "single": Setting(
        Scales(32, (8,), (84,)),
        Scales(64, (16,), (84,), parents=(0,)),
        "control: the plain resampler, many tokens",
    ),
    "single-few": Setting(
        Scales(32, (8,), (20,)),
        Scales(64, (16,), (20,), parents=(0,)),
        "control: the plain resampler, few tokens",
    ),
    "scratch": Setting(
        SMALL20, dataclasses.replace(SMALL84, parents=()), "control: no pre-training"
    ),
}


# The two sizes


def small(setting: Setting, pretrain: bool = True) -> ConfigDict:
    """Everything trained from scratch on easy-vqa: images of one shape, with captions and questions made from them."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        vision=dict(
            patch_size=4, width=128, layers=3, heads=4, mlp_width=512, activation="gelu", norm="rms",
            class_token=False, embedding_norm=False, weight_std=fan_in(), embedding_std=0.5,
        ),
        connector=dict(
            kind="resampler", feature_layers=(3,), width=128, head_dim=32, mlp_width=512, norm="rms", weight_std=fan_in(), query_std=0.5,
        ),
        decoder=dict(  # vocabulary 0: as many as the tokenizer has words
            vocabulary=0, width=128, layers=3, heads=4, kv_heads=4, head_dim=32, mlp_width=320, weight_std=fan_in(), embedding_std=0.5,
        ),
        compute_dtype="float32", remat="none", unroll=3,
    )  # fmt: skip
    optimizer = dict(
        warmup_steps=60, final_scale=0.03, beta2=0.98, weight_decay=0.02, clip_norm=1.0
    )
    data = dict(template="plain", flip=True, holdout=200)
    config.stages = ConfigDict(sort_keys=False)  # stages run in the order in which they are written
    if pretrain:
        config.stages.pretrain = dict(
            model=setting.pretrain.model(),
            data=dict(
                sources=dict(easy_vqa=dict(kind="easy_vqa", tasks=("caption", "question"))),
                text_length=36,
                **data,
            ),
            optimizer=dict(learning_rate=5e-4, **optimizer),
            steps=2000,
            batch_size=16,
        )
    config.stages.finetune = dict(
        model=setting.finetune.model(),
        data=dict(
            sources=dict(easy_vqa=dict(kind="easy_vqa", tasks=("question",))),
            text_length=112,
            **data,
        ),
        optimizer=dict(learning_rate=7e-4, **optimizer),
        transitions=("inflate", "resize_positions") if pretrain else (),
        steps=400,
        batch_size=16,
    )
    config.tokenizer = dict(kind="words")
    config.evaluation = dict(tasks=("easy_vqa",))
    config.notes = dict(
        tokens=setting.note, data="substituted: easy-vqa, which any computer can train on"
    )
    return config


def published(stamps: bool) -> ConfigDict:
    """SmolLM2-135M reads images through DINOv2-small: both frozen at first, then the language model is adapted by LoRA.

    Needs `python -m mmjax.fetch smollm2 dinov2-small`, and with `stamps` also `python -m mmjax.fetch tuxpaint-stamps`.
    """
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        vision=dataclasses.asdict(presets.dinov2_small(layers=10)),
        connector=dict(
            kind="resampler", feature_layers=(8, 10), width=384, head_dim=64, mlp_width=1536, activation="gelu", norm="layer",
        ),
        decoder=dataclasses.asdict(presets.smollm2_135m()), lora=dict(rank=0, alpha=32.0), compute_dtype="float32", remat="none", unroll=1,
    )  # fmt: skip
    del config.model.vision.image_size  # each stage says its own
    optimizer = dict(final_scale=0.05, weight_decay=0.01, clip_norm=1.0)
    sources = dict(easy_vqa=dict(kind="easy_vqa", tasks=("caption", "question")))
    if stamps:
        folder = "fetched:tuxpaint-stamps"
        sources["stamps"] = dict(kind="jsonl", path=f"{folder}/captions.jsonl", image_dir=folder)
    config.stages = ConfigDict(sort_keys=False)  # stages run in the order in which they are written
    config.stages.pretrain = dict(
        model=Scales(112, windows=(8, 2), queries=(4, 16)).model(),
        data=dict(sources=sources, text_length=192, template="chat", flip=True, holdout=50),
        optimizer=dict(learning_rate=1e-3, warmup_steps=30, **optimizer),
        init_from=dict(vision="fetched:dinov2-small", decoder="fetched:smollm2"),
        trainable=("connector/*",),
        steps=600,
        batch_size=16,
        gradient_accumulation_steps=4,  # the activations of 16 rows at once are more than a laptop has
    )
    config.stages.finetune = dict(
        model=Scales(224, windows=(16, 8, 2), queries=(4, 16, 64), parents=(0, 0, 1)).model() | dict(lora=dict(rank=16)),
        data=dict(
            sources=dict(easy_vqa=dict(kind="easy_vqa", tasks=("question",))), text_length=256, template="chat", flip=True, holdout=50,
        ),
        optimizer=dict(learning_rate=5e-4, warmup_steps=30, **optimizer),
        transitions=("inflate", "resize_positions_half_pixel", "attach_lora"),
        init_from=dict(vision="fetched:dinov2-small"),  # the encoder has not changed, and its own table is finer than the resized one
        trainable=("connector/*", "*/lora_a", "*/lora_b"),
        steps=400,
        batch_size=16,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    config.tokenizer = dict(kind="huggingface", path="fetched:smollm2")
    config.evaluation = dict(
        tasks=("easy_vqa",), batch_size=16, max_new_tokens=8, untrained=False, limit=100
    )
    config.notes = dict(
        weights="substituted: DINOv2-small for CLIP ViT-L/14, SmolLM2-135M-Instruct for Vicuna-7B",
        features="blocks 8 and 10 of 12: the last ones of these weights were trained on for another task",
        data="substituted: easy-vqa" + (" and the stamps of Tux Paint" if stamps else ""),
        evaluation="of the first 100 test images only; --config.evaluation.limit=none scores all",
    )
    return config


def fan_in() -> config_dict.FieldReference:
    """No standard deviation: 1 / sqrt(fan in)."""
    return config_dict.placeholder(float)


def large(setting: Setting, decoder: ConfigDict, template: str) -> ConfigDict:
    """CLIP ViT-L/14 at 224 then 448 pixels, and a frozen language model that fine-tuning adapts by LoRA on every linear map."""
    config = ConfigDict()
    config.seed = 0
    single = len(setting.pretrain.windows) == 1
    config.model = dict(
        vision=dataclasses.asdict(presets.clip_vit_l14(layers=23)),
        connector=dict(
            kind="resampler", feature_layers=(23,) if single else (16, 23), width=1024, head_dim=64, mlp_width=4096,
            activation="gelu", norm="layer",
        ),
        decoder=decoder, lora=dict(rank=0, alpha=64.0), compute_dtype="bfloat16", remat="full", unroll=1,
    )  # fmt: skip
    del config.model.vision.image_size  # each stage says its own
    reader = dict(learning_rate_scale=0.1)  # of encoder and connector, in fine-tuning
    optimizer = dict(schedule="cosine", weight_decay=0.0, clip_norm=1.0)
    config.stages = ConfigDict(sort_keys=False)  # stages run in the order in which they are written
    config.stages.pretrain = dict(
        model=setting.pretrain.model(),
        data=dict(
            sources=dict(captions=llava_source()), text_length=128, template="plain", workers=8
        ),
        optimizer=dict(
            learning_rate=1e-3,
            warmup_steps=65,
            groups=(dict(match="vision/*", learning_rate_scale=0.02),),
            **optimizer,
        ),
        init_from=dict(
            vision=config_dict.placeholder(str), decoder=config_dict.placeholder(str)
        ),  # the user says where
        trainable=("vision/*", "connector/*"),
        steps=2181,
        batch_size=256,
    )
    config.stages.finetune = dict(
        model=setting.finetune.model() | dict(lora=dict(rank=64)),
        data=dict(
            sources=dict(conversations=llava_source()),
            text_length=752,
            template=template,
            workers=8,
            skip_budget=0.1,
        ),
        optimizer=dict(
            learning_rate=2e-4,
            warmup_steps=156,
            groups=(dict(match="vision/*", **reader), dict(match="connector/*", **reader)),
            **optimizer,
        ),
        transitions=("inflate", "resize_positions", "attach_lora"),
        trainable=("vision/*", "connector/*", "*/lora_a", "*/lora_b"),
        steps=5198,
        batch_size=128,
    )
    config.tokenizer = dict(kind="huggingface", path=config_dict.placeholder(str))
    config.mesh = dict(data=1, fsdp=-1)
    config.notes = dict(LARGE_NOTES, tokens=setting.note)
    return config


def llava_source() -> dict:
    """A LLaVA conversation file and the folder of its images; the user says where."""
    return dict(
        kind="llava", path=config_dict.placeholder(str), image_dir=config_dict.placeholder(str)
    )


LARGE_NOTES = dict(
    weights="paper: those of CLIP ViT-L/14 at 224 pixels, and of the language model",
    trained="paper: 532 M trainable parameters, which are the encoder (23 blocks), the connector and LoRA of rank 64 on all linear maps; "
    "inferred: LoRA is added for fine-tuning, and the encoder is trained in both stages",
    lora="inferred: rank 64 from the 532 M; substituted: alpha 64, not published",
    optimizer="substituted: AdamW at the rates, batch sizes and steps of the authors' LLaVA-style port (1e-3 in stage 1, 2e-5 in stage 2, "
    "warm-up 3 %); 2e-5 also for the encoder in stage 1, and 2e-4 for LoRA, as is customary",
    data="substituted: LLaVA-style conversations for the 65 million image-text pairs of the paper",
    prompts="substituted: the formats of LLaVA (plain, then the language model's own); the paper's prompts are not published",
)


def linear_baseline() -> ConfigDict:
    """The "Linear" bridge: all 256 patches at 224 pixels, in both stages."""
    config = large(SETTINGS["cos80-80-224px"], vicuna(), "vicuna_v1")
    config.model.connector = dict(kind="linear", feature_layers=(23,))
    for stage in config.stages.values():
        del stage.model.connector
    config.stages.finetune.transitions = ("attach_lora",)
    config.notes.tokens = "paper: baseline, 256 tokens at 224 pixels"
    return config


def vicuna() -> ConfigDict:
    return ConfigDict(dataclasses.asdict(presets.vicuna_7b()))


def llama3() -> ConfigDict:
    return ConfigDict(dataclasses.asdict(presets.llama3_8b()))


# By name

VARIANTS = {
    **{
        name: lambda name=name: small(SMALL_SETTINGS[name], pretrain=name != "scratch")
        for name in SMALL_SETTINGS
    },
    "smollm2": lambda: published(stamps=False),
    "smollm2-stamps": lambda: published(stamps=True),
    "7b": lambda: large(SETTINGS["cos80-1296"], vicuna(), "vicuna_v1"),
    "8b": lambda: large(SETTINGS["cos80-1296"], llama3(), "llama3"),
    **{name: lambda name=name: large(SETTINGS[name], vicuna(), "vicuna_v1") for name in SETTINGS},
    "linear256": linear_baseline,
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The recipe of a variant; see the top of this file."""
    return choose(variant or "", VARIANTS, "variant of configs/cos.py")()
