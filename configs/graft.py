"""Zero-shot grafting (arXiv:2505.22664): train a vision encoder on a surrogate of the language model, then plug it into the whole.

    python -m mmjax.main --config=configs/graft.py                   SmolLM2-135M and DINOv2-small, on any computer
    python -m mmjax.main --config=configs/graft.py:8b --mode=plan    the paper's Llama-3.1-8B: what it costs
    python -m mmjax.main --config=configs/graft.py:cos               few visual tokens on the surrogate: the two savings together

With a large language model almost all of the cost is the language model. A surrogate keeps its embeddings, its early blocks, its last
ones and its head; in the place of the others stands one trained block, the translator. Three stages:

    translator    connector and translator are trained
    encoder       connector and the encoder's last third, with the surrogate frozen
    decoder       the encoder is grafted into the whole model, which is then trained on a share of the data

`python -m mmjax.trajectory` proposes the range that can be replaced; docs/surrogates.md tells the whole story. `notes` in each recipe say
what is taken from the paper, what is inferred and what had to be substituted.

Variants:
    (none)          a surrogate of SmolLM2-135M with DINOv2-small, then 20 % of the data on the whole model
    after           the last stage alone, on 10 % of the data, from what python -m mmjax.graft wrote; needs
                    --config.stages.decoder.init_from.model=FOLDER
    whole           the same stages on the whole model from the start     (control: what the surrogate saves)
    full            the whole model in both stages, on all of the data                    (baseline)
    lora            the same, with low-rank updates in the place of all parameters        (baseline)
    random          another range of as many blocks is replaced                           (control: where the cut is)
    early           as many early blocks are replaced                                     (control: what is kept)
    foreign         the surrogate of a model with other embeddings, and a connector aligned anew (control: what is shared); needs weights
                    of such a model: python benchmarks/foreign_decoder.py, and --config.stages.translator.init_from.decoder=FOLDER
    cos             20 tokens on the surrogate (Chain-of-Sight, arXiv:2407.15819), inflated to 84 when grafted
    3b, 8b, 70b, qwen3_4b                    the paper's settings for Llama-3.2-3B, Llama-3.1-8B, Llama-3.1-70B and Qwen3-4B
    3b-whole ..., 3b-full, 3b-lora, 3b-cos   their control and baselines, and the combination with Chain-of-Sight: 80 tokens grow to 1296
"""

# ruff: noqa: C408 - settings read best as keywords

import dataclasses

from ml_collections import ConfigDict, config_dict

from mmjax.config.load import choose
from mmjax.models import presets
from mmjax.models.config import DecoderConfig

Range = tuple[int, int]
Stages = dict[str, dict]

PAPER = {
    "3b": (presets.llama32_3b, (16, 27)),
    "8b": (presets.llama31_8b, (17, 31)),
    "70b": (presets.llama31_70b, (40, 79)),
    "qwen3_4b": (presets.qwen3_4b, (22, 35)),
}
"""Targets and the ranges that their surrogates lack: official code."""

SMALL_RANGE = (16, 24)
"""Of SmolLM2-135M's 30 blocks: from where `python -m mmjax.trajectory` proposes (docs/trajectory.md), but only so many that the language
model still finds words before its translator has learned anything (docs/surrogates.md).
"""
RANDOM_RANGE, EARLY_RANGE = (7, 15), (1, 9)

CONNECTOR = ("connector/*",)  # the learned vectors around an image are part of it
LATE = (*CONNECTOR, "vision/final_norm/*", "vision/separate_last_layers/*")


# The paper's stages, for either size


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much is trained.

    Attributes:
        steps, batch_size: of the stages "translator", "encoder" and "decoder"; the last on all of the data, of which `share` is used.
        rates: learning rate of each stage.
        warmup: share of the steps.
    """

    steps: tuple[int, int, int]
    batch_size: tuple[int, int, int]
    rates: tuple[float, float, float]
    share: float
    warmup: float = 0.0305

    def stage(self, index: int, share: float = 1.0) -> dict:
        """Steps, rows and schedule of a stage on a share of its data."""
        steps = max(1, round(self.steps[index] * share))
        optimizer = dict(
            learning_rate=self.rates[index],
            schedule="cosine_over_all",
            warmup_steps=int(steps * self.warmup),
            clip_norm=1.0,
        )
        return dict(steps=steps, batch_size=self.batch_size[index], optimizer=optimizer)


def grafted(config: ConfigDict, amounts: Amounts, data: Stages, replaced: Range | None) -> None:
    """The three stages of the paper; where nothing is replaced, on the whole model from the start."""
    surrogate = dict(decoder=dict(replaced_layers=(replaced,) if replaced else ()))
    translators = ("decoder/translators/*",) if replaced else ()
    config.stages.translator = dict(
        model=surrogate, data=data["translator"], init_from=weights("vision", "decoder"), **amounts.stage(0),
        trainable=(*CONNECTOR, "vision/final_norm/*", *translators),
    )  # fmt: skip
    config.stages.encoder = dict(
        model=surrogate, data=data["encoder"], trainable=LATE, **amounts.stage(1)
    )
    if not replaced:
        config.stages.encoder.optimizer.learning_rate *= 4  # paper: 2e-4 in the place of 5e-5
        config.stages.decoder = dict(
            data=data["decoder"], trainable=(*LATE, "decoder/*"), **amounts.stage(2, amounts.share)
        )
        return
    config.stages.decoder = dict(
        data=data["decoder"], transitions=("graft",), init_from=weights("decoder"), trainable=(*LATE, "decoder/*"),
        **amounts.stage(2, amounts.share),
    )  # fmt: skip


def baseline(config: ConfigDict, amounts: Amounts, data: Stages, lora: dict | None) -> None:
    """The baselines: the connector is aligned with the whole model, which is then trained on all of the data."""
    config.stages.connector = dict(
        data=data["encoder"],
        init_from=weights("vision", "decoder"),
        trainable=(*CONNECTOR, "vision/final_norm/*"),
        **amounts.stage(0),
    )
    config.stages.decoder = dict(
        data=data["decoder"], trainable=(*LATE, "decoder/*"), **amounts.stage(2)
    )
    if lora is not None:
        adapted = dict(
            model=dict(lora=lora),
            transitions=("attach_lora",),
            trainable=(*LATE, "*/lora_a", "*/lora_b"),
        )
        config.stages.decoder.update(adapted)


def weights(*parts: str) -> dict:
    return {part: config_dict.placeholder(str) for part in parts}  # the user says where


# Chain-of-Sight: few tokens on the surrogate, many when grafted


def few_then_many(config: ConfigDict, few: dict, many: dict) -> None:
    """Each a stage's own part of the model."""
    for stage in config.stages.values():
        if "model" in stage:  # the surrogate
            stage.model.update(few)
        stage.trainable = tuple(
            glob for glob in stage.trainable if glob != "vision/final_norm/*"
        )  # which a resampler does not read
    config.model.vision.final_norm = False
    del config.model.vision.image_size  # each stage says its own
    config.stages.decoder.model = many
    config.stages.decoder.transitions = ("inflate", "resize_positions", "graft")


def scales(
    image_size: int,
    windows: tuple[int, ...],
    queries: tuple[int, ...],
    parents: tuple[int, ...] = (),
) -> dict:
    return dict(
        vision=dict(image_size=image_size),
        connector=dict(windows=windows, queries=queries, parents=parents),
    )


# Published models that any computer can train


def small(kind: str) -> ConfigDict:
    """SmolLM2-135M with DINOv2-small; needs `python -m mmjax.fetch smollm2 dinov2-small tuxpaint-stamps`."""
    config = begin(
        vision=dataclasses.replace(presets.dinov2_small(image_size=112, layers=10), final_norm=True, separate_last_layers=3),
        decoder=presets.smollm2_135m(), compute_dtype="float32", remat="none",
    )  # fmt: skip
    folder = "fetched:tuxpaint-stamps"
    sources = dict(
        stamps=dict(
            kind="jsonl", path=f"{folder}/captions.jsonl", image_dir=folder, holdout_by="caption"
        ),
        easy_vqa=dict(kind="easy_vqa", tasks=("question",)),
    )
    data = dict(sources=sources, text_length=48, template="plain", flip=True, holdout=60)
    amounts = Amounts(
        (240, 240, 240), (4, 4, 4), (1e-3, 5e-4, 1e-4), share=0.1 if kind == "after" else 0.2
    )
    stages = dict.fromkeys(("translator", "encoder", "decoder"), data)
    if kind in ("full", "lora"):
        baseline(config, amounts, stages, dict(rank=8, alpha=32.0) if kind == "lora" else None)
    else:
        grafted(
            config,
            amounts,
            stages,
            {"random": RANDOM_RANGE, "early": EARLY_RANGE, "whole": None}.get(kind, SMALL_RANGE),
        )
    if kind == "cos":
        config.model.connector = resampler((8, 10), width=384)
        few_then_many(
            config, scales(112, (8, 2), (4, 16)), scales(224, (16, 8, 2), (4, 16, 64), (0, 0, 1))
        )
        config.stages.decoder.transitions = ("inflate", "resize_positions_half_pixel", "graft")
    for stage in config.stages.values():
        stage.init_from = {
            part: f"fetched:{dict(vision='dinov2-small', decoder='smollm2')[part]}"
            for part in stage.get("init_from", {})
        }
    for name, scale in dict(
        encoder=0.1, decoder=0.5
    ).items():  # to 5e-5: a published encoder forgets what it knows at a connector's rate
        if name in config.stages:
            config.stages[name].optimizer.groups = (
                dict(match="vision/*", learning_rate_scale=scale),
            )
    if kind == "foreign":
        realigned(config, amounts, data)
    if kind == "after":
        del config.stages.translator, config.stages.encoder
        config.stages.decoder.transitions = ()
        config.stages.decoder.init_from = weights(
            "model"
        )  # all of it: an assignment, since an update would keep the decoder of before
    config.tokenizer = dict(kind="huggingface", path="fetched:smollm2")
    config.evaluation = dict(
        tasks=("captions", "easy_vqa"), batch_size=16, max_new_tokens=16, untrained=False, limit=60
    )
    config.logging = dict(every=10)
    config.notes = dict(SMALL_NOTES)
    return config


def realigned(config: ConfigDict, amounts: Amounts, data: dict) -> None:
    """Encoder and connector come from another model's surrogate; then the connector alone is aligned with the target."""
    config.stages.translator.init_from.decoder = config_dict.placeholder(str)
    config.stages.decoder.update(dict(trainable=CONNECTOR, **amounts.stage(0)))
    config.stages.decoder.optimizer.groups = ()


SMALL_NOTES = dict(
    weights="substituted: DINOv2-small for CLIP ViT-L/14, SmolLM2-135M-Instruct for Llama",
    features="block 10 of 12, through the final norm: the last ones of these weights were trained on for another task",
    data="substituted: the stamps of Tux Paint, split by caption, and easy-vqa; no text alone in the first stage",
    amounts="substituted: a few hundred rows a stage; the paper's three learning rates are 1e-4, 5e-5 and 5e-5",
)


# The paper's sizes


def large(name: str, kind: str) -> ConfigDict:
    """CLIP ViT-L/14 at 336 pixels, whose 577 tokens the language model reads between two learned vectors."""
    make, replaced = PAPER[name]
    vision = dataclasses.replace(
        presets.clip_vit_l14(image_size=336), final_norm=True, separate_last_layers=8
    )
    config = begin(vision=vision, decoder=make(), compute_dtype="bfloat16", remat="full")
    config.data = dict(
        sources=dict(conversations=llava_source()), text_length=768, template="chat" if name == "qwen3_4b" else "llama3", workers=8,
        skip_budget=0.1,
    )  # fmt: skip
    text = dict(
        kind="llava", path=config_dict.placeholder(str), image_dir=".", weight=500_000
    )  # conversations without images
    marks = dict(train_on_special_tokens=name != "qwen3_4b")
    first = dict(sources=dict(conversations=dict(weight=624_610), text=text), **marks)
    stages = dict(translator=first, encoder=marks, decoder={})
    amounts = Amounts((4393, 4880, 4880), (256, 128, 128), (1e-4, 5e-5, 5e-5), share=0.2)
    if kind in ("full", "lora"):
        amounts = dataclasses.replace(amounts, steps=(2440, 0, 4880))
        lora = dict(
            rank=8,
            alpha=32.0,
            targets=("decoder/layers/attention/query", "decoder/layers/attention/value"),
        )
        baseline(config, amounts, stages, lora if kind == "lora" else None)
    else:
        grafted(config, amounts, stages, None if kind == "whole" else replaced)
    if kind == "cos":
        config.model.connector = resampler((16, 24), width=1024)
        few_then_many(
            config,
            scales(224, (16, 4), (16, 64)),
            scales(448, (32, 8, 2), (16, 256, 1024), (0, 0, 1)),
        )
        config.notes.cos = "the 80 and 1296 tokens of CoS-7B (configs/cos.py:7b), which has no learned vectors around an image"
    config.tokenizer = dict(kind="huggingface", path=config_dict.placeholder(str))
    config.mesh = dict(data=1, fsdp=-1)
    config.notes.update(LARGE_NOTES)
    return config


def llava_source() -> dict:
    """A LLaVA conversation file and the folder of its images; the user says where."""
    return dict(
        kind="llava", path=config_dict.placeholder(str), image_dir=config_dict.placeholder(str)
    )


LARGE_NOTES = dict(
    stages="paper: what is trained, learning rates, batch sizes, steps and schedule (official code); the last stage on 20 % of the data",
    data="paper: the 624,610 conversations with images of LLaVA-665K, and 500,000 texts of GenQA beside them in the first stage; a text "
    "source is a LLaVA file without images",
    precision="substituted: float32 for what is trained and its moments; the official code has bfloat16 throughout",
    images="substituted: stretched to the square; the official code pads them with the mean colour",
    text="substituted: 768 text tokens a row; the official code reads 4096 tokens in all",
    steps="inferred for 3b: its published checkpoint of the first stage has 3568; qwen3_4b is in the official code, but not in its results",
    targets="paper: the stages on the surrogate also learn the special tokens of turns (not qwen3_4b: its marks are inferred to carry no "
    "loss); substituted: empty lines before an answer are learned in no stage, in the official code in those of Llama",
    prompts="substituted: the language model's own format; the official code puts phrases of its own around the question",
    lora="inferred: rank 8, alpha 32 on query and value, the defaults of the official code",
    connector="inferred: the baselines align the connector on the conversations with images, 2440 steps of 256",
)


# Both sizes


def begin(vision: object, decoder: DecoderConfig, compute_dtype: str, remat: str) -> ConfigDict:
    """What all variants share; the connector is the paper's, of two layers."""
    config = ConfigDict()
    config.seed = 0
    config.model = dict(
        vision=dataclasses.asdict(vision),
        connector=dict(
            kind="mlp", feature_layers=(vision.layers,), hidden_width=decoder.width, activation="gelu", class_token=True, final_norm=True,
            image_boundary_tokens=True,
        ),
        decoder=dataclasses.asdict(decoder), lora=dict(rank=0), compute_dtype=compute_dtype, remat=remat, unroll=1,
    )  # fmt: skip
    config.notes = dict()
    config.stages = ConfigDict(sort_keys=False)  # stages run in the order in which they are written
    return config


def resampler(feature_layers: tuple[int, ...], width: int) -> dict:
    """Chain-of-Sight's connector, between the two learned vectors."""
    return dict(
        kind="resampler", feature_layers=feature_layers, width=width, head_dim=64, mlp_width=4 * width, activation="gelu", norm="layer",
        image_boundary_tokens=True,
    )  # fmt: skip


VARIANTS = {
    **{
        name: lambda name=name: small(name)
        for name in ("", "after", "whole", "full", "lora", "random", "early", "foreign", "cos")
    },
    **{name: lambda name=name: large(name, "") for name in PAPER},
    **{
        f"{name}-{kind}": lambda name=name, kind=kind: large(name, kind)
        for name in PAPER
        for kind in ("whole", "full", "lora", "cos")
    },
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The recipe of a variant; see the top of this file."""
    return choose(variant or "", VARIANTS, "variant of configs/graft.py")()
