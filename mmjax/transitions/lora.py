"""Low-rank updates (arXiv:2106.09685) come and go between stages."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.transitions.base import Difference, Transition
from mmjax.transitions.manifest import Entry
from mmjax.typing import Array, Float, Params

LORA_A, LORA_B = "/lora_a", "/lora_b"


def is_lora(path: str) -> bool:
    """Whether a parameter is a factor of a low-rank update."""
    return path.endswith((LORA_A, LORA_B))


def attach_lora(
    params: Params, old: VLMConfig, new: VLMConfig, key: Array
) -> tuple[Params, list[Entry]]:
    """Puts a low-rank update beside every kernel that `new.lora` targets: A random by its fan-in, B zero, so the model computes the same.

    Raises:
        InputError: `new` has no low-rank updates, or the parameters already do.
    """
    del old
    present = [path for path in params if is_lora(path)]
    if present:
        raise InputError(
            f"there are low-rank updates already, such as {min(present)}; put 'merge_lora' before it."
        )
    shapes = {path: leaf for path, leaf in parameters.abstract(new)[1].items() if is_lora(path)}
    if not shapes:
        raise InputError(
            f"the model of this stage has none (lora.rank is {new.lora.rank}, lora.targets is {new.lora.targets})."
        )
    fresh = {
        path: _initial(path, leaf, jax.random.fold_in(key, index))
        for index, (path, leaf) in enumerate(sorted(shapes.items()))
    }
    note = f"rank {new.lora.rank}, alpha {new.lora.alpha:g}"
    return params | fresh, [
        Entry.of(value, path, None, "fresh", note) for path, value in fresh.items()
    ]


def merge_lora(
    params: Params, old: VLMConfig, new: VLMConfig, key: Array
) -> tuple[Params, list[Entry]]:
    """Adds every low-rank update to its kernel and removes its factors; the model computes the same. In float32.

    Raises:
        InputError: there are no low-rank updates.
    """
    del new, key
    modules = sorted(path.removesuffix(LORA_A) for path in params if path.endswith(LORA_A))
    if not modules:
        raise InputError("the parameters of the stage before have no low-rank updates.")
    result = {path: value for path, value in params.items() if not is_lora(path)}
    entries = []
    for module in modules:
        kernel = f"{module}/kernel"
        result[kernel] = merged_kernel(
            params[kernel], params[module + LORA_A], params[module + LORA_B], old.lora.alpha
        )
        note = f"with its low-rank update, alpha {old.lora.alpha:g}"
        entries.append(Entry.of(result[kernel], kernel, kernel, "merged", note))
    return result, entries


def merged_kernel(
    kernel: Float[Array, "*layers in out"],
    lora_a: Float[Array, "*layers in r"],
    lora_b: Float[Array, "*layers r out"],
    alpha: float,
) -> Float[Array, "*layers in out"]:
    """W + (alpha / r) A B, float32."""
    rank = lora_a.shape[-1]
    update = jnp.matmul(
        lora_a.astype(jnp.float32), lora_b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return kernel.astype(jnp.float32) + (alpha / rank) * update


def _initial(path: str, leaf: jax.ShapeDtypeStruct, key: Array) -> Array:
    if path.endswith(LORA_B):
        return jnp.zeros(leaf.shape, leaf.dtype)
    fan_in = leaf.shape[-2]
    return jax.random.normal(key, leaf.shape, leaf.dtype) * fan_in**-0.5


def _attach_hints(difference: Difference) -> Iterator[str]:
    if "attach_lora" not in difference.names and any(map(is_lora, difference.missing)):
        yield "low-rank updates begin: 'attach_lora' adds them"


def _merge_hints(difference: Difference) -> Iterator[str]:
    if "merge_lora" not in difference.names and any(map(is_lora, difference.unexpected)):
        yield "low-rank updates end: 'merge_lora' adds them to their kernels"


TRANSITIONS = (
    Transition("attach_lora", attach_lora, _attach_hints),
    Transition("merge_lora", merge_lora, _merge_hints),
)
