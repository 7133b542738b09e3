"""Low-rank adaptation (arXiv:2106.09685) of any linear map of a module that is already built."""

from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.config import LoRAConfig
from mmjax.models.layers import Linear


def attach(module: nnx.Module, config: LoRAConfig, rngs: nnx.Rngs) -> None:
    """Puts `lora_a` [in, r] (normal, deviation in ** -0.5) and `lora_b` [r, out] (zeros) beside the kernel of every linear map whose module
    path ("decoder/layers/attention/query") matches a glob of `config.targets`. Stacked kernels get stacked updates.

    Raises:
        ValueError: a glob matches no linear map.
    """
    linears = {
        "/".join(map(str, path)): part
        for path, part in nnx.iter_modules(module)
        if isinstance(part, Linear)
    }
    for pattern in config.targets:
        if not any(fnmatchcase(path, pattern) for path in linears):
            raise ValueError(
                f"lora.targets has {pattern!r}, which matches none of the linear maps: {', '.join(sorted(linears))}"
            )
    for path in sorted(linears):
        if any(fnmatchcase(path, pattern) for pattern in config.targets):
            _attach(linears[path], config, rngs)


def _attach(linear: Linear, config: LoRAConfig, rngs: nnx.Rngs) -> None:
    *stacked, inputs, outputs = linear.kernel.shape
    axes = linear.kernel.get_metadata("axes")
    lora_a = jax.random.normal(rngs.params(), (*stacked, inputs, config.rank)) * inputs**-0.5
    linear.lora_a = nnx.Param(lora_a, axes=(axes[0], None))
    linear.lora_b = nnx.Param(jnp.zeros((*stacked, config.rank, outputs)), axes=(None, axes[1]))
    linear.lora_scale = config.alpha / config.rank
