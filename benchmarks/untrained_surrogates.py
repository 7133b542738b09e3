"""What is left of a language model when blocks are replaced, before any translator has learned: nats per token of a text.

    python benchmarks/untrained_surrogates.py --text=FILE [--weights=fetched:smollm2] [--ranges 16:24 16:29 ...] [--samples=40]

A surrogate that still finds words needs little training of its translator; one that has lost them needs much. FILE is as for
`python -m mmjax.trajectory`: texts between blank lines, or a .jsonl file with "text" in each line.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.chat.hf_assets import find_tokenizer
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig
from mmjax.training.metrics import cross_entropy
from mmjax.trajectory.samples import read_samples
from mmjax.transitions.surrogate import cut
from mmjax.typing import NO_TARGET, Array, Params
from mmjax.weights.load import open_pretrained

ROWS = 8  # that are read at once
RANGES = ("16:22", "16:24", "16:26", "16:28", "16:29", "7:15", "1:9", "8:21", "1:14")


def rows_of(samples: Sequence[np.ndarray]) -> tuple[Array, Array]:
    """Tokens [N, T] and what follows each: NO_TARGET behind a sample's end, where tokens are 0."""
    longest = max(map(len, samples))
    tokens = np.stack([np.pad(sample, (0, longest - len(sample))) for sample in samples])
    following = np.stack(
        [
            np.pad(sample[1:], (0, longest - len(sample) + 1), constant_values=NO_TARGET)
            for sample in samples
        ]
    )
    return jnp.asarray(tokens), jnp.asarray(following)


def loss(
    params: Params,
    config: LanguageModelConfig,
    replaced: tuple[tuple[int, int], ...],
    tokens: Array,
    following: Array,
) -> float:
    """Nats per token, with ranges of blocks replaced by the first of each."""
    changed = dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, replaced_layers=replaced)
    )
    model_def, _ = parameters.abstract(changed)
    stacks = cut(params, "decoder", changed.decoder.layer_ranges)
    read = jax.jit(
        lambda params, tokens, following: cross_entropy(model_def.merge(params)(tokens), following)
    )
    sums = [
        read(stacks, tokens[first : first + ROWS], following[first : first + ROWS])
        for first in range(0, len(tokens), ROWS)
    ]
    return float(sum(each.loss for each in sums) / sum(each.targets for each in sums))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument(
        "--weights", default="fetched:smollm2", help="a language model, or fetched:NAME"
    )
    parser.add_argument(
        "--ranges",
        nargs="+",
        default=RANGES,
        help="FIRST:END, the blocks that one takes the place of",
    )
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample at most")
    options = parser.parse_args()
    path = resolved(options.weights)
    with open_pretrained(path) as opened:
        if not isinstance(opened.config, LanguageModelConfig):
            raise SystemExit(
                f"--weights must be a language model on its own, and {options.weights} is not."
            )
        config, params = opened.config, opened.read()
    sizes = {
        "count": options.samples,
        "longest": options.length,
        "vocabulary": config.decoder.vocabulary,
    }
    tokens, following = rows_of(read_samples(options.text, find_tokenizer(path), **sizes).tokens)
    print("| replaced | blocks left | nats per token |\n|---|---|---|")
    print(
        f"| nothing | {config.decoder.layers} | {loss(params, config, (), tokens, following):.2f} |",
        flush=True,
    )
    for text in options.ranges:
        first, end = map(int, text.split(":"))
        kept = config.decoder.layers - (end - first) + 1
        print(
            f"| [{first}, {end}) | {kept} | {loss(params, config, ((first, end),), tokens, following):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
