"""The one door to attention: checks the call, picks an implementation, or obeys the one that is named."""

from mmjax.kernels.attention import reference, xla
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.typing import Array, Float

IMPLEMENTATIONS = {"reference": reference.attention, "xla": xla.attention}


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: IntervalMask | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(softcap(scale q k^T)) v over the keys that the mask shows; grouped-query where K < N.

    Args:
        mask: which keys a query row sees; None: all of them.
        scale: of the scores; None: H ** -0.5.
        softcap: bound c of the scores, c tanh(score / c); None: unbounded.
        implementation: a name in IMPLEMENTATIONS; None picks the fastest that serves the call.

    Returns:
        [B, T, N, H] in the dtype of q. A row that sees nothing is zero.

    Raises:
        ValueError: the implementation is unknown, or N is not a multiple of K.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads cannot share {k.shape[2]} key/value heads: the second must divide the first")
    name = implementation or "xla"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"there is no attention implementation {name!r}; there are {', '.join(sorted(IMPLEMENTATIONS))}")
    return IMPLEMENTATIONS[name](q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale, softcap)
