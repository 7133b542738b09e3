"""What a pre-training step costs with few visual tokens: seconds per sample and FLOPs at 32/48/80/256/336 tokens, relative to 336.

    python benchmarks/cos_pretrain_cost.py [--models default slice] [--rounds 5] [--batch 6] [--out benchmarks/results/NAME.md]

Two models: the default recipe's widths at the paper's geometry (a 16 x 16 grid of patches), and a slice at the paper's widths: a few
layers of Vicuna-7B with the matching share of ViT-L, the resampler whole. In the slice, as in the paper's first stage, the language model
is frozen but for LoRA, and encoder and resampler train; the default model trains all of itself. Every setting has the same batch and 60
text tokens a row. The settings take turns, one step each a round, in one process; the figure is the median over rounds of the ratio
within the round. The paper's ratios are those of its main ablation (pre-training time).
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmjax.base import host  # noqa: E402

host.prepare()

import jax  # noqa: E402
from synthetic import make_batch  # noqa: E402

from mmjax.data.sources.easy_vqa import EasyVqaSource  # noqa: E402
from mmjax.models import parameters  # noqa: E402
from mmjax.models.config import DecoderConfig, LoRAConfig, ViTConfig, VLMConfig  # noqa: E402
from mmjax.models.connectors.linear import LinearConfig  # noqa: E402
from mmjax.models.connectors.resampler import ResamplerConfig  # noqa: E402
from mmjax.recipe.recipe import DataConfig, OptimizerConfig, Stage  # noqa: E402
from mmjax.training import state as training_state  # noqa: E402
from mmjax.training.checkpoint import by_path  # noqa: E402
from mmjax.training.flops import step_flops  # noqa: E402
from mmjax.training.step import make_train_step  # noqa: E402
from mmjax.typing import Array  # noqa: E402

TEXT = 60
PAPER = {32: 0.27, 48: 0.35, 80: 0.42, 256: 0.82, 336: 1.00}
SCALES = {  # tokens -> (windows, queries) on the 16 x 16 grid; 256 is the linear bridge, 336 the paper's single-window resampler
    32: ((16, 4), (16, 16)),
    48: ((16, 4), (16, 32)),
    80: ((16, 4), (16, 64)),
    336: ((16,), (336,)),
}


def default_parts() -> tuple[ViTConfig, dict, DecoderConfig, LoRAConfig]:
    """The default recipe's widths, at 64 pixels: 16 x 16 patches."""
    from mmjax.config.load import load

    model = next(iter(load("configs/cos.py").stages.values())).model
    vision = dataclasses.replace(model.vision, image_size=16 * model.vision.patch_size)
    resampler = {
        f.name: getattr(model.connector, f.name) for f in dataclasses.fields(model.connector)
    }
    decoder = dataclasses.replace(model.decoder, vocabulary=model.decoder.vocabulary or 296)
    return vision, resampler, decoder, LoRAConfig()


def slice_parts(
    llm_layers: int, vit_layers: int
) -> tuple[ViTConfig, dict, DecoderConfig, LoRAConfig]:
    """A slice of CoS-7B: full widths, few layers, the resampler whole, which reads the last two blocks."""
    from mmjax.models import presets

    vision = presets.clip_vit_l14(image_size=224, layers=vit_layers)
    decoder = dataclasses.replace(presets.vicuna_7b(), layers=llm_layers)
    resampler = {
        "kind": "resampler",
        "feature_layers": (vit_layers - 1, vit_layers),
        "width": 1024,
        "head_dim": 64,
        "mlp_width": 4096,
    }
    return vision, resampler, decoder, LoRAConfig(rank=64, alpha=64.0)


def make_stage(parts, tokens: int, batch: int, dtype: str) -> Stage:
    vision, resampler, decoder, lora = parts
    if tokens == 256:
        connector = LinearConfig(kind="linear", feature_layers=resampler["feature_layers"][-1:])
    else:
        windows, queries = SCALES[tokens]
        # The plain resampler reads one layer.
        single = {"feature_layers": resampler["feature_layers"][-1:]} if tokens == 336 else {}
        connector = ResamplerConfig(
            **{**resampler, **single, "windows": windows, "queries": queries}
        )
    # As in the recipes; unrolled, the step copies every layer's weights at once.
    unroll = 1 if lora.rank else decoder.layers
    model = VLMConfig(vision, connector, decoder, lora=lora, compute_dtype=dtype, unroll=unroll)
    trainable = ("vision/*", "connector/*", "*/lora_?") if lora.rank else ("*",)
    data = DataConfig(sources={"random": EasyVqaSource(kind="easy_vqa")}, text_length=TEXT)
    return Stage(
        "pretrain",
        model,
        data,
        OptimizerConfig(learning_rate=1e-4),
        steps=1000,
        batch_size=batch,
        trainable=trainable,
    )


Pool = dict[tuple[str, tuple[int, ...]], Array]
"""Arrays of states by path and shape. Settings lend each other what they have in common, so that one language model serves all."""


class Setting:
    """One token count: its compiled step, and the places of its state in the pool."""

    def __init__(self, stage: Stage, pool: Pool):
        self.stage, self.batch = stage, make_batch(stage, 0)
        model_def, _ = parameters.abstract(stage.model)
        self.step = make_train_step(model_def, stage)

        def create(key: Array) -> training_state.TrainState:
            return training_state.create(parameters.initialize(stage.model, key), stage, key)

        abstract = jax.eval_shape(create, jax.random.key(0))
        self.tree = jax.tree.structure(abstract)
        self.places = [(path, leaf.shape) for path, leaf in by_path(abstract).items()]
        missing = [place for place in self.places if place not in pool]

        @jax.jit
        def draw(key: Array) -> list[Array]:  # what is not returned is never drawn
            found = dict(zip(self.places, by_path(create(key)).values(), strict=True))
            return [found[place] for place in missing]

        pool |= dict(zip(missing, draw(jax.random.key(0)), strict=True))

    def run(self, pool: Pool) -> float:
        """Seconds of one step."""
        state = jax.tree.unflatten(self.tree, [pool.pop(place) for place in self.places])
        start = time.perf_counter()
        state, metrics = self.step(state, self.batch)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        pool |= dict(zip(self.places, by_path(state).values(), strict=True))
        return seconds


def measure(
    parts, batch: int, rounds: int, dtype: str
) -> tuple[dict[int, list[float]], dict[int, Setting]]:
    pool: Pool = {}
    settings = {tokens: Setting(make_stage(parts, tokens, batch, dtype), pool) for tokens in PAPER}
    seconds: dict[int, list[float]] = {tokens: [] for tokens in settings}
    for round_ in range(rounds + 1):
        for tokens, setting in settings.items():
            taken = setting.run(pool)
            if round_:  # the first round compiles
                seconds[tokens].append(taken)
            print(f"round {round_}, {tokens} tokens: {taken:.2f} s", file=sys.stderr, flush=True)
    return seconds, settings


def table(seconds: dict[int, list[float]], settings: dict[int, Setting], batch: int) -> list[str]:
    """Markdown: time and FLOPs per sample, and the FLOPs by part."""
    flops = {
        tokens: step_flops(setting.stage.model, setting.stage).row
        for tokens, setting in settings.items()
    }
    parts = {
        tokens: step_flops(setting.stage.model, setting.stage).parts
        for tokens, setting in settings.items()
    }
    lines = [
        "| visual tokens | ms per sample: median (min-max) | relative to 336: median (min-max) | GFLOPs per sample | relative | paper |",
        "|---|---|---|---|---|---|",
    ]
    for tokens, taken in seconds.items():
        ms = spread([1e3 * s / batch for s in taken], ".2f")
        ratios = spread([a / b for a, b in zip(taken, seconds[336], strict=True)], ".3f")
        total, relative = flops[tokens].total / 1e9, flops[tokens].total / flops[336].total
        lines.append(
            f"| {tokens} | {ms} | {ratios} | {total:.2f} | {relative:.3f} | {PAPER[tokens]} |"
        )
    names = list(parts[336])
    lines += [
        "",
        "GFLOPs per sample by part, forward and backward:",
        "",
        f"| visual tokens | {' | '.join(names)} |",
    ]
    lines.append("|---" * (1 + len(names)) + "|")
    lines += [
        f"| {tokens} | {' | '.join(f'{by_part[name].total / 1e9:.2f}' for name in names)} |"
        for tokens, by_part in parts.items()
    ]
    return lines


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["default", "slice"], choices=["default", "slice"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--batch", type=int, default=6, help="of the slice, which takes 20 GB of memory with 6"
    )
    parser.add_argument("--default_batch", type=int, default=16)
    parser.add_argument("--llm_layers", type=int, default=4)
    parser.add_argument("--vit_layers", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out")
    options = parser.parse_args()
    lines = []
    for name in options.models:
        parts = (
            default_parts()
            if name == "default"
            else slice_parts(options.llm_layers, options.vit_layers)
        )
        batch = options.default_batch if name == "default" else options.batch
        seconds, settings = measure(parts, batch, options.rounds, options.dtype)
        lines += [
            "",
            f"## {name} (batch {batch}, {TEXT} text tokens, {options.rounds} rounds)",
            "",
            *table(seconds, settings, batch),
        ]
        del settings
    print("\n".join(lines))
    if options.out:
        pathlib.Path(options.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
