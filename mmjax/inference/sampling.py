"""The next token from its scores: the likeliest one, or one drawn by chance."""

import jax
import jax.numpy as jnp

from mmjax.typing import Array, Bool, Float, Int

_HALVINGS = 31  # of the bits of numbers up to 1, of which there are fewer than 2 ** 30


def choose(
    logits: Float[Array, "V"], key: Array, *, temperature: float, top_p: float
) -> Int[Array, ""]:
    """One token.

    Args:
        logits: scores of all tokens; -inf for those that may not be chosen.
        key: of jax.random; the same one chooses the same token.
        temperature: the scores are divided by it; 0 takes the likeliest token, the first of several.
        top_p: only the tokens of `nucleus` are drawn from, after the division.
    """
    if temperature == 0 or top_p == 0:
        return jnp.argmax(logits).astype(jnp.int32)
    scaled = logits.astype(jnp.float32) / temperature
    if top_p < 1:
        scaled = jnp.where(nucleus(jax.nn.softmax(scaled), top_p), scaled, -jnp.inf)
    return jax.random.categorical(key, scaled).astype(jnp.int32)


def nucleus(probabilities: Float[Array, "V"], top_p: float) -> Bool[Array, "V"]:
    """The smallest set of tokens whose probabilities add up to `top_p` at least (arXiv:1904.09751); of equal ones the first.

    The likeliest token is in it, however small `top_p` is; a token without probability is not. The least probability of the set is found by
    bisection, in a fraction of the time that sorting a large vocabulary takes.

    Args:
        probabilities: float32.
    """
    bits = jax.lax.bitcast_convert_type(
        probabilities, jnp.int32
    )  # in the order of the numbers, as none is negative

    def mass(chosen: Array) -> Array:
        return jnp.where(chosen, probabilities, 0).sum()

    def narrow(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        """The tokens from the first bound on are enough, those from the second on are not."""
        middle = (bounds[0] + bounds[1]) // 2
        enough = mass(bits >= middle) >= top_p
        return jnp.where(enough, middle, bounds[0]), jnp.where(enough, bounds[1], middle)

    least, _ = jax.lax.fori_loop(0, _HALVINGS, narrow, (jnp.int32(0), bits.max() + 1))
    above, equal = bits > least, bits == least
    number = jnp.cumsum(equal) - 1
    added = number * jax.lax.bitcast_convert_type(least, jnp.float32)
    needed = (number == 0) | (mass(above) + added < top_p)
    return (above | (equal & needed)) & (probabilities > 0)
