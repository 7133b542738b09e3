"""A decoder that computes the same as a published one, but has another embedding space: the control of configs/graft.py:foreign.

    python benchmarks/foreign_decoder.py --weights=fetched:smollm2 --out=FOLDER [--seed=0]

The channels of the residual stream change their places and half of them their signs, in every matrix that reads or writes them. RMSNorm
does not mind, so every logit is what it was (up to the order of sums); but an encoder that has learned to speak to one of the two models is
not understood by the other. If the surrogate of this model teaches an encoder less that is of use to the first, it is not for lack of
ability.
"""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np

from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from mmjax.models.config import LanguageModelConfig
from mmjax.typing import Array, Params
from mmjax.weights.load import open_pretrained
from mmjax.weights.save import save_params

AXIS = "embed"  # the logical name of the residual stream


def foreign(params: Params, config: LanguageModelConfig, seed: int) -> Params:
    """The parameters with the channels of the residual stream in another order, and some of them negated."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(config.decoder.width)
    signs = jnp.asarray(generator.choice([-1.0, 1.0], config.decoder.width), jnp.float32)
    names = parameters.logical_axes(config)

    def moved(path: str, value: Array) -> Array:
        if AXIS in names[path]:  # a matrix
            axis = names[path].index(AXIS)
            shape = [1] * value.ndim
            shape[axis] = -1
            return jnp.take(value, order, axis=axis) * signs.reshape(shape).astype(value.dtype)
        if names[path][-1] == "norm" and value.shape[-1] == len(order):
            # A norm's scale keeps its sign: it multiplies channels that have theirs.
            return jnp.take(value, order, axis=-1)
        return value

    return {path: moved(path, value) for path, value in params.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="fetched:smollm2", help="a language model, or fetched:NAME"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="a folder that does not exist yet"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with open_pretrained(resolved(options.weights)) as opened:
        if not isinstance(opened.config, LanguageModelConfig):
            raise SystemExit(
                f"--weights must be a language model on its own, and {options.weights} is not."
            )
        params = foreign(opened.read(), opened.config, options.seed)
        save_params(params, opened.config, options.out, origins=opened.origins, dtype="float32")


if __name__ == "__main__":
    main()
