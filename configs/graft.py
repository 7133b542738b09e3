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
from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict, FieldReference, config_dict

from mmjax.models import presets
from mmjax.models.config import DecoderConfig
from mmjax.recipe.schema import choose

Settings = dict[str, Any]
"""A part of a recipe, by the names of its fields."""
Globs = tuple[str, ...]

# What stages train. The learned vectors around an image are part of the connector. An MLP reads the encoder's features through its last
# norm, a resampler does not.
MLP: Globs = ("connector/*", "vision/final_norm/*")
RESAMPLER: Globs = ("connector/*",)
TRANSLATOR = "decoder/translators/*"
LATE_BLOCKS = "vision/separate_last_layers/*"
DECODER = "decoder/*"
LORA: Globs = ("*/lora_a", "*/lora_b")


# Published models that any computer can train: SmolLM2-135M reads images through DINOv2-small. All of these recipes need
# `python -m mmjax.fetch smollm2 dinov2-small tuxpaint-stamps`.

SMOLLM2 = dict(decoder="fetched:smollm2")
SMALL_RANGE = (16, 24)
"""Of SmolLM2-135M's 30 blocks: from where `python -m mmjax.trajectory` proposes (docs/trajectory.md), but only so many that the language
model still finds words before its translator has learned anything (docs/surrogates.md).
"""


def default(replaced: tuple[int, int] = SMALL_RANGE) -> ConfigDict:
    """A surrogate first, then the whole model on 20 % of the data."""
    surrogate = dict(decoder=dict(replaced_layers=(replaced,)))
    stages = dict(
        translator=small_align(surrogate, (*MLP, TRANSLATOR)),
        encoder=small_encoder(surrogate, (*MLP, LATE_BLOCKS)),
        decoder=small_decoder(48, (*MLP, LATE_BLOCKS, DECODER), ("graft",), SMOLLM2),
    )
    return small(SMALL_MLP, stages)


def whole() -> ConfigDict:
    """The same stages on the whole model from the start."""
    stages = dict(
        translator=small_align({}, MLP),
        # Four times the rate on a surrogate; in the paper, 2e-4 in the place of 5e-5.
        encoder=small_encoder({}, (*MLP, LATE_BLOCKS), learning_rate=2e-3),
        decoder=small_decoder(48, (*MLP, LATE_BLOCKS, DECODER)),
    )
    return small(SMALL_MLP, stages)


def after() -> ConfigDict:
    """The last stage alone, on 10 % of the data, from a folder of `python -m mmjax.graft`, which the user names."""
    start = dict(model=given())
    stages = dict(decoder=small_decoder(24, (*MLP, LATE_BLOCKS, DECODER), init_from=start))
    return small(SMALL_MLP, stages)


def full() -> ConfigDict:
    """The connector is aligned with the whole model, which is then trained on all of the data."""
    stages = dict(
        connector=small_align({}, MLP), decoder=small_decoder(240, (*MLP, LATE_BLOCKS, DECODER))
    )
    return small(SMALL_MLP, stages)


def lora() -> ConfigDict:
    """The same, with low-rank updates in the place of all parameters."""
    updates = dict(lora=dict(rank=8, alpha=32.0))
    stages = dict(
        connector=small_align({}, MLP),
        decoder=small_decoder(240, (*MLP, LATE_BLOCKS, *LORA), ("attach_lora",), model=updates),
    )
    return small(SMALL_MLP, stages)


def foreign() -> ConfigDict:
    """Encoder and connector come from another model's surrogate; then the connector alone is aligned with the target."""
    surrogate = dict(decoder=dict(replaced_layers=(SMALL_RANGE,)))
    stages = dict(
        translator=small_align(surrogate, (*MLP, TRANSLATOR), decoder=given()),
        encoder=small_encoder(surrogate, (*MLP, LATE_BLOCKS)),
        decoder=dict(
            data=small_data(),
            optimizer=optimizer(1e-3, steps=240),
            transitions=("graft",),
            init_from=SMOLLM2,
            trainable=("connector/*",),
            steps=240,
            batch_size=4,
        ),
    )
    return small(SMALL_MLP, stages)


def cos() -> ConfigDict:
    """Chain-of-Sight: 20 tokens on the surrogate, which grow to 84 when it is grafted."""
    few = scales(112, windows=(8, 2), queries=(4, 16))
    many = scales(224, windows=(16, 8, 2), queries=(4, 16, 64), parents=(0, 0, 1))
    surrogate = dict(decoder=dict(replaced_layers=(SMALL_RANGE,)), **few)
    grow = ("inflate", "resize_positions_half_pixel", "graft")
    stages = dict(
        translator=small_align(surrogate, (*RESAMPLER, TRANSLATOR)),
        encoder=small_encoder(surrogate, (*RESAMPLER, LATE_BLOCKS)),
        decoder=small_decoder(48, (*RESAMPLER, LATE_BLOCKS, DECODER), grow, SMOLLM2, many),
    )
    return small(resampler((8, 10), width=384), stages)


def small_align(
    model: Settings, trainable: Globs, decoder: str | FieldReference = "fetched:smollm2"
) -> Settings:
    """The connector learns to speak to the language model, and the translator of a surrogate with it."""
    return dict(
        model=model,
        data=small_data(),
        optimizer=optimizer(1e-3, steps=240),
        init_from=dict(vision="fetched:dinov2-small", decoder=decoder),
        trainable=trainable,
        steps=240,
        batch_size=4,
    )


def small_encoder(model: Settings, trainable: Globs, learning_rate: float = 5e-4) -> Settings:
    """The encoder's late blocks learn, too: at a tenth of the connector's rate, at which they would forget what they know."""
    return dict(
        model=model,
        data=small_data(),
        optimizer=optimizer(learning_rate, steps=240, vision=0.1),
        trainable=trainable,
        steps=240,
        batch_size=4,
    )


def small_decoder(
    steps: int,
    trainable: Globs,
    transitions: tuple[str, ...] = (),
    init_from: Settings | None = None,
    model: Settings | None = None,
) -> Settings:
    """The whole language model learns, or its low-rank updates; 240 steps are all of the data."""
    return dict(
        model=model or {},
        data=small_data(),
        optimizer=optimizer(1e-4, steps, vision=0.5),
        transitions=transitions,
        init_from=init_from or {},
        trainable=trainable,
        steps=steps,
        batch_size=4,
    )


def small_data() -> Settings:
    """Captions and questions, in every stage."""
    folder = "fetched:tuxpaint-stamps"
    path = f"{folder}/captions.jsonl"
    sources = dict(
        stamps=dict(kind="jsonl", path=path, image_dir=folder, holdout_by="caption"),
        easy_vqa=dict(kind="easy_vqa", tasks=("question",)),
    )
    return dict(sources=sources, text_length=48, template="plain", flip=True, holdout=60)


def small(connector: Settings, stages: dict[str, Settings]) -> ConfigDict:
    """A recipe between the two models."""
    vision = dataclasses.replace(
        presets.dinov2_small(image_size=112, layers=10),
        final_norm=connector.get("final_norm", False),
        separate_last_layers=3,
    )
    return recipe(
        stages,
        model=dict(
            vision=dataclasses.asdict(vision),
            connector=connector,
            decoder=dataclasses.asdict(presets.smollm2_135m()),
            lora=dict(rank=0),
            compute_dtype="float32",
            remat="none",
            unroll=1,
        ),
        tokenizer=dict(kind="huggingface", path="fetched:smollm2"),
        evaluation=dict(
            tasks=("captions", "easy_vqa"),
            batch_size=16,
            max_new_tokens=16,
            untrained=False,
            limit=60,
        ),
        logging=dict(every=10),
        notes=dict(
            weights="substituted: DINOv2-small for CLIP ViT-L/14, SmolLM2-135M-Instruct for Llama",
            features="block 10 of 12, through the final norm: the last ones of these weights were trained on for another task",
            data="substituted: the stamps of Tux Paint, split by caption, and easy-vqa; no text alone in the first stage",
            amounts="substituted: a few hundred rows a stage; the paper's three learning rates are 1e-4, 5e-5 and 5e-5",
        ),
    )


# The paper's sizes: CLIP ViT-L/14 at 336 pixels, whose 577 tokens the language model reads between two learned vectors. The user says where
# the weights and the data are.


@dataclasses.dataclass(frozen=True)
class Target:
    """A language model of the paper.

    Attributes:
        replaced: the range of blocks that its surrogate lacks (official code).
        learns_special_tokens: whether the stages on the surrogate are trained on the special tokens of its template.
    """

    decoder: DecoderConfig
    replaced: tuple[int, int]
    template: str = "llama3"
    learns_special_tokens: bool = True


LLAMA32_3B = Target(presets.llama32_3b(), (16, 27))
LLAMA31_8B = Target(presets.llama31_8b(), (17, 31))
LLAMA31_70B = Target(presets.llama31_70b(), (40, 79))
QWEN3_4B = Target(presets.qwen3_4b(), (22, 35), template="chat", learns_special_tokens=False)


def paper(target: Target) -> ConfigDict:
    """A surrogate first, then the whole model on 20 % of the data."""
    surrogate = dict(decoder=dict(replaced_layers=(target.replaced,)))
    stages = dict(
        translator=large_translator(target, surrogate, (*MLP, TRANSLATOR)),
        encoder=large_encoder(target, surrogate, (*MLP, LATE_BLOCKS)),
        decoder=large_decoder(976, (*MLP, LATE_BLOCKS, DECODER), ("graft",), dict(decoder=given())),
    )
    return large(target, mlp(24, target.decoder.width), stages)


def paper_whole(target: Target) -> ConfigDict:
    """The same stages on the whole model from the start."""
    stages = dict(
        translator=large_translator(target, {}, MLP),
        encoder=large_encoder(target, {}, (*MLP, LATE_BLOCKS), learning_rate=2e-4),
        decoder=large_decoder(976, (*MLP, LATE_BLOCKS, DECODER)),
    )
    return large(target, mlp(24, target.decoder.width), stages)


def paper_full(target: Target) -> ConfigDict:
    """The connector is aligned with the whole model, which is then trained on all of the data."""
    stages = dict(
        connector=large_connector(target), decoder=large_decoder(4880, (*MLP, LATE_BLOCKS, DECODER))
    )
    return large(target, mlp(24, target.decoder.width), stages)


def paper_lora(target: Target) -> ConfigDict:
    """The same, with low-rank updates in the place of all parameters."""
    targets = ("decoder/layers/attention/query", "decoder/layers/attention/value")
    updates = dict(lora=dict(rank=8, alpha=32.0, targets=targets))
    stages = dict(
        connector=large_connector(target),
        decoder=large_decoder(4880, (*MLP, LATE_BLOCKS, *LORA), ("attach_lora",), model=updates),
    )
    return large(target, mlp(24, target.decoder.width), stages)


def paper_cos(target: Target) -> ConfigDict:
    """Chain-of-Sight: 80 tokens on the surrogate, which grow to 1296 when it is grafted."""
    few = scales(224, windows=(16, 4), queries=(16, 64))
    many = scales(448, windows=(32, 8, 2), queries=(16, 256, 1024), parents=(0, 0, 1))
    surrogate = dict(decoder=dict(replaced_layers=(target.replaced,)), **few)
    grow = ("inflate", "resize_positions", "graft")
    stages = dict(
        translator=large_translator(target, surrogate, (*RESAMPLER, TRANSLATOR)),
        encoder=large_encoder(target, surrogate, (*RESAMPLER, LATE_BLOCKS)),
        decoder=large_decoder(
            976, (*RESAMPLER, LATE_BLOCKS, DECODER), grow, dict(decoder=given()), many
        ),
    )
    note = "the 80 and 1296 tokens of CoS-7B (configs/cos.py:7b), which has no learned vectors around an image"
    return large(target, resampler((16, 24), width=1024), stages, cos=note)


def large_translator(target: Target, model: Settings, trainable: Globs) -> Settings:
    """The connector learns to speak to the language model, and the translator of a surrogate with it; texts without images are mixed in."""
    texts = dict(kind="llava", path=given(), image_dir=".", weight=500_000)
    return dict(
        model=model,
        data=dict(
            sources=dict(conversations=dict(weight=624_610), text=texts),
            train_on_special_tokens=target.learns_special_tokens,
        ),
        optimizer=optimizer(1e-4, steps=4393),
        init_from=dict(vision=given(), decoder=given()),
        trainable=trainable,
        steps=4393,
        batch_size=256,
    )


def large_connector(target: Target) -> Settings:
    """The connector learns to speak to the whole language model, from conversations about images alone."""
    return dict(
        data=dict(train_on_special_tokens=target.learns_special_tokens),
        optimizer=optimizer(1e-4, steps=2440),
        init_from=dict(vision=given(), decoder=given()),
        trainable=MLP,
        steps=2440,
        batch_size=256,
    )


def large_encoder(
    target: Target, model: Settings, trainable: Globs, learning_rate: float = 5e-5
) -> Settings:
    """The encoder's late blocks learn, too."""
    return dict(
        model=model,
        data=dict(train_on_special_tokens=target.learns_special_tokens),
        optimizer=optimizer(learning_rate, steps=4880),
        trainable=trainable,
        steps=4880,
        batch_size=128,
    )


def large_decoder(
    steps: int,
    trainable: Globs,
    transitions: tuple[str, ...] = (),
    init_from: Settings | None = None,
    model: Settings | None = None,
) -> Settings:
    """The whole language model learns, or its low-rank updates; 4880 steps are all of the data."""
    return dict(
        model=model or {},
        optimizer=optimizer(5e-5, steps),
        transitions=transitions,
        init_from=init_from or {},
        trainable=trainable,
        steps=steps,
        batch_size=128,
    )


def large(
    target: Target, connector: Settings, stages: dict[str, Settings], **notes: str
) -> ConfigDict:
    """A recipe for a target; conversations about images are the data of all stages."""
    vision = dataclasses.replace(
        presets.clip_vit_l14(image_size=336),
        final_norm=connector.get("final_norm", False),
        separate_last_layers=8,
    )
    return recipe(
        stages,
        model=dict(
            vision=dataclasses.asdict(vision),
            connector=connector,
            decoder=dataclasses.asdict(target.decoder),
            lora=dict(rank=0),
            compute_dtype="bfloat16",
            remat="full",
            unroll=1,
        ),
        data=dict(
            sources=dict(conversations=dict(kind="llava", path=given(), image_dir=given())),
            text_length=768,
            template=target.template,
            workers=8,
            skip_budget=0.1,
        ),
        tokenizer=dict(kind="huggingface", path=given()),
        mesh=dict(data=1, fsdp=-1),
        notes=LARGE_NOTES | notes,
    )


LARGE_NOTES = dict(
    stages="paper: what is trained, learning rates, batch sizes, steps and schedule (official code); the last stage on 20 % of the data",
    data="paper: the 624,610 conversations with images of LLaVA-665K, and 500,000 texts of GenQA beside them in the first stage; a text "
    "source is a LLaVA file without images",
    precision="substituted: float32 for what is trained and its moments; the official code has bfloat16 throughout",
    images="substituted: stretched to the square; the official code pads them with the mean colour",
    text="substituted: 768 text tokens a row; the official code reads 4096 tokens in all",
    steps="inferred for 3b: its published checkpoint of the first stage has 3568; qwen3_4b is in the official code, but not in its results",
    targets="paper: the stages on the surrogate also learn the special tokens of turns (not qwen3_4b: its special tokens are inferred to "
    "carry no loss); substituted: empty lines before an answer are learned in no stage, in the official code in those of Llama",
    prompts="substituted: the language model's own format; the official code puts phrases of its own around the question",
    lora="inferred: rank 8, alpha 32 on query and value, the defaults of the official code",
    connector="inferred: the baselines align the connector on the conversations with images, 2440 steps of 256",
)


# Both sizes


def mlp(feature_layer: int, hidden_width: int) -> Settings:
    """The paper's connector: two layers, which read patches and class token, between two learned vectors."""
    return dict(
        kind="mlp",
        feature_layers=(feature_layer,),
        hidden_width=hidden_width,
        activation="gelu",
        class_token=True,
        final_norm=True,
        image_boundary_tokens=True,
    )


SMALL_MLP = mlp(10, hidden_width=576)


def resampler(feature_layers: tuple[int, ...], width: int) -> Settings:
    """Chain-of-Sight's connector, between the two learned vectors; each stage says its own windows and queries."""
    return dict(
        kind="resampler",
        feature_layers=feature_layers,
        width=width,
        head_dim=64,
        mlp_width=4 * width,
        activation="gelu",
        norm="layer",
        image_boundary_tokens=True,
    )


def scales(
    image_size: int,
    windows: tuple[int, ...],
    queries: tuple[int, ...],
    parents: tuple[int, ...] = (),
) -> Settings:
    """A stage's visual tokens, as in configs/cos.py."""
    return dict(
        vision=dict(image_size=image_size),
        connector=dict(windows=windows, queries=queries, parents=parents),
    )


def optimizer(learning_rate: float, steps: int, vision: float = 1.0) -> Settings:
    """The paper's schedule.

    Args:
        vision: factor of the encoder's learning rate.
    """
    return dict(
        learning_rate=learning_rate,
        schedule="cosine_over_all",
        warmup_steps=int(0.0305 * steps),
        clip_norm=1.0,
        groups=(dict(match="vision/*", learning_rate_scale=vision),) if vision != 1.0 else (),
    )


def given() -> FieldReference:
    """A path that the user gives on the command line."""
    return config_dict.placeholder(str)


def recipe(stages: dict[str, Settings], **settings: Any) -> ConfigDict:
    """All of a recipe; what `model` and `data` hold is shared by the stages, and a stage's own is merged over it."""
    config = ConfigDict(dict(seed=0, **settings))
    config.stages = ConfigDict(sort_keys=False)  # stages run in the order in which they are written
    for name, stage in stages.items():  # one by one: a dictionary in two of them becomes two
        config.stages[name] = stage
    return config


# By name

VARIANTS: dict[str, Callable[[], ConfigDict]] = {
    "": default,
    "after": after,
    "whole": whole,
    "full": full,
    "lora": lora,
    "random": partial(default, (7, 15)),
    "early": partial(default, (1, 9)),
    "foreign": foreign,
    "cos": cos,
    "3b": partial(paper, LLAMA32_3B),
    "8b": partial(paper, LLAMA31_8B),
    "70b": partial(paper, LLAMA31_70B),
    "qwen3_4b": partial(paper, QWEN3_4B),
    "3b-whole": partial(paper_whole, LLAMA32_3B),
    "3b-full": partial(paper_full, LLAMA32_3B),
    "3b-lora": partial(paper_lora, LLAMA32_3B),
    "3b-cos": partial(paper_cos, LLAMA32_3B),
    "8b-whole": partial(paper_whole, LLAMA31_8B),
    "8b-full": partial(paper_full, LLAMA31_8B),
    "8b-lora": partial(paper_lora, LLAMA31_8B),
    "8b-cos": partial(paper_cos, LLAMA31_8B),
    "70b-whole": partial(paper_whole, LLAMA31_70B),
    "70b-full": partial(paper_full, LLAMA31_70B),
    "70b-lora": partial(paper_lora, LLAMA31_70B),
    "70b-cos": partial(paper_cos, LLAMA31_70B),
    "qwen3_4b-whole": partial(paper_whole, QWEN3_4B),
    "qwen3_4b-full": partial(paper_full, QWEN3_4B),
    "qwen3_4b-lora": partial(paper_lora, QWEN3_4B),
    "qwen3_4b-cos": partial(paper_cos, QWEN3_4B),
}


def get_config(variant: str | None = None) -> ConfigDict:
    """The recipe of a variant; see the top of this file."""
    return choose(variant or "", VARIANTS, "variant of configs/graft.py")()
