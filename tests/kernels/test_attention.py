"""Attention: every implementation against the definition, and the mask against a mask written with loops."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.errors import InputError
from mmjax.kernels.attention import IMPLEMENTATIONS, IntervalMask, attention, prefer, xla_chunked
from tests.kernels.program_text import largest_array


def looped_mask(segments, prefixes):
    rows, length = segments.shape
    seen = np.zeros((rows, length, length), bool)
    for b in range(rows):
        for i in range(length):
            for j in range(length):
                own = segments[b, i] == segments[b, j] and j <= i
                prefix = prefixes[b, i] > 0 and segments[b, j] == prefixes[b, i]
                seen[b, i, j] = segments[b, i] > 0 and (own or prefix)
    return seen


@st.composite
def packed_rows(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=0, max_size=5))
    # Up to one of a few lengths, of which each is a program.
    padding = draw(st.sampled_from([one for one in (5, 12, 26) if one >= sum(lengths)])) - sum(
        lengths
    )
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    shared = [0, *(draw(st.integers(0, number - 1)) for number in range(1, len(lengths) + 1))]
    prefixes = np.array([shared[number] for number in segments], int)
    pad = np.zeros(padding, int)
    return np.concatenate([segments, pad])[None].astype(np.int32), np.concatenate([prefixes, pad])[
        None
    ].astype(np.int32)


@jax.jit
def dense(segments, prefixes):
    return IntervalMask.from_segments(segments, prefixes).dense(segments.shape[1])


@given(packed_rows())
@settings(max_examples=60, deadline=None)
def test_the_mask_of_packed_segments_is_the_looped_one(row):
    segments, prefixes = row
    np.testing.assert_array_equal(dense(segments, prefixes), looped_mask(segments, prefixes))


def test_without_prefixes_segments_are_causal_islands():
    segments = np.array([[1, 1, 2, 2, 2, 0]], np.int32)
    mask = IntervalMask.from_segments(jnp.asarray(segments))
    np.testing.assert_array_equal(mask.dense(6), looped_mask(segments, np.zeros_like(segments)))


def make_inputs(heads, kv_heads, length=7, keys=9, seed=0, dtype=jnp.float32):
    k = jax.random.split(jax.random.key(seed), 3)
    shapes = [(2, length, heads, 8), (2, keys, kv_heads, 8), (2, keys, kv_heads, 8)]
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(k, shapes, strict=True))


MASKS = {
    "none": None,
    "intervals": IntervalMask(
        jnp.arange(7)[None].repeat(2, 0) // 2, 1 + jnp.arange(7)[None].repeat(2, 0)
    ),
    "with prefix and an empty row": IntervalMask(
        jnp.full((2, 7), 4),
        4 + jnp.arange(7)[None].repeat(2, 0) % 5,
        jnp.zeros((2, 7), int),
        3 * (jnp.arange(7)[None].repeat(2, 0) % 5 > 0),
    ),
}


EVERYWHERE = ("xla", "xla_chunked, rows alone", "xla_chunked, rows together")


@pytest.fixture
def implementation(request, monkeypatch):
    """Its name; of `EVERYWHERE`, in tiles that the few rows and keys of a test fill several of."""
    name, _, rows = request.param.partition(", ")
    monkeypatch.setitem(
        xla_chunked.TILES, "cpu", xla_chunked.Tile(3, 4, alone=rows == "rows alone")
    )
    return name


def relative_error(got, wanted):
    return [
        float(jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) + 1e-9))
        for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True)
    ]


def value_and_gradients(inputs, weight, mask, **options):
    return jax.value_and_grad(
        lambda *x: jnp.sum(weight * attention(*x, mask, **options)), (0, 1, 2)
    )(*inputs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("heads", "kv_heads"), [pytest.param(4, 4, marks=pytest.mark.slow), (4, 2), (6, 1)]
)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("implementation", EVERYWHERE, indirect=True)
def test_values_and_gradients_are_those_of_the_definition(
    mask, heads, kv_heads, softcap, implementation
):
    inputs = make_inputs(heads, kv_heads)
    weight = jax.random.normal(jax.random.key(9), inputs[0].shape)
    got, wanted = (
        value_and_gradients(inputs, weight, MASKS[mask], softcap=softcap, implementation=name)
        for name in (implementation, "reference")
    )
    assert max(relative_error(got, wanted)) < 1e-5


@pytest.mark.parametrize("implementation", EVERYWHERE, indirect=True)
def test_large_scores_lose_nothing(implementation):
    inputs = make_inputs(4, 2)
    weight = jax.random.normal(jax.random.key(9), inputs[0].shape)
    got, wanted = (
        value_and_gradients(inputs, weight, MASKS["intervals"], scale=30.0, implementation=name)
        for name in (implementation, "reference")
    )
    assert max(relative_error(got, wanted)) < 1e-4


@pytest.mark.parametrize("implementation", EVERYWHERE, indirect=True)
def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient(implementation):
    q, k, v = make_inputs(2, 2)
    mask = IntervalMask(jnp.full((2, 7), 3), jnp.where(jnp.arange(7) == 4, 3, 5)[None].repeat(2, 0))
    out, gradient = jax.value_and_grad(
        lambda v: attention(q, k, v, mask, implementation=implementation)[:, 4].sum()
    )(v)
    assert out == 0 and not np.any(gradient)
    whole = attention(q, k, v, mask, implementation=implementation)
    assert np.all(np.isfinite(whole)) and np.any(whole[:, 3])


CUTS = st.lists(
    st.lists(st.integers(0, 9), min_size=4, max_size=4).map(sorted), min_size=7, max_size=7
)


@functools.cache
def compiled(implementation):
    """Value and gradients of attention over 7 rows and 9 keys in tiles of 3 and 4, for any mask of two intervals."""

    def of(inputs, weight, mask):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(xla_chunked.TILES, "cpu", xla_chunked.Tile(3, 4, alone=True))
            return value_and_gradients(inputs, weight, mask, implementation=implementation)

    return jax.jit(of)


@given(CUTS)
@settings(max_examples=60, deadline=None)
def test_any_intervals_give_what_the_definition_gives(cuts):
    mask = IntervalMask(
        *(jnp.asarray(cuts, jnp.int32)[None, :, column].repeat(2, 0) for column in (2, 3, 0, 1))
    )
    inputs = make_inputs(2, 1)
    weight = jax.random.normal(jax.random.key(9), inputs[0].shape)
    got, wanted = (compiled(name)(inputs, weight, mask) for name in ("xla_chunked", "reference"))
    for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("implementation", EVERYWHERE[1:], indirect=True)
def test_tiles_that_nobody_sees_are_not_touched(implementation):
    """What lies in such tiles may be anything, even NaN."""
    q, k, v = make_inputs(2, 2, length=6, keys=12)
    mask = IntervalMask(
        jnp.full((2, 6), 4), jnp.full((2, 6), 7)
    )  # the second of three tiles of keys
    poisoned = (x.at[:, :4].set(jnp.nan).at[:, 8:].set(jnp.nan) for x in (k, v))
    out, gradients = jax.value_and_grad(
        lambda *x: attention(*x, mask, implementation=implementation).sum(), (0, 1, 2)
    )(q, *poisoned)
    assert np.isfinite(out) and all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_memory_grows_with_rows_and_not_with_scores():
    def lowered(length, implementation=None):
        shape = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.bfloat16)

        def loss(q, k, v):
            return (
                attention(q, k, v, IntervalMask.causal(1, length), implementation=implementation)
                .astype(jnp.float32)
                .sum()
            )

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape)

    def temporaries(length):
        program = lowered(length)
        compiled = program.compile()
        assert largest_array(program.as_text(), compiled.as_text()) < length**2, (
            "nothing has an element for each score of a head"
        )
        return compiled.memory_analysis().temp_size_in_bytes

    assert largest_array(lowered(8192, "xla").as_text()) == 2 * 8192**2, (
        "one that holds the scores would be seen"
    )
    short, long = temporaries(8192), temporaries(32768)
    # Bytes; a dense mask of a bit for each score is larger.
    assert long < 4.5 * short and long < 32768 * 32768 / 8


@pytest.mark.parametrize("implementation", ["reference", *EVERYWHERE], indirect=True)
def test_padding_may_be_anything(implementation):
    """Of a packed row, in the same tiles as what is seen; so may the gradient of its results."""
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    mask, real = IntervalMask.from_segments(segments), (segments > 0)[..., None, None]
    clean = make_inputs(4, 2, keys=7)
    weight = jax.random.normal(jax.random.key(9), clean[0].shape)

    def of(*arrays):
        out, back = jax.vjp(
            lambda *x: attention(*x, mask, implementation=implementation), *arrays[:3]
        )
        return out, *back(arrays[3])

    poisoned = of(*(jnp.where(real, x, jnp.nan) for x in (*clean, weight)))
    for got, wanted in zip(poisoned, of(*clean, weight), strict=True):
        np.testing.assert_allclose(got, jnp.where(real, wanted, 0), atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", *EVERYWHERE], indirect=True)
def test_intervals_outside_the_keys_show_nothing(implementation):
    mask = IntervalMask.from_media(
        jnp.asarray([[0, 1, 1, 3, 3, 3, 3], [1, 1, 1, 1, 2, 2, 2]]), tokens=9
    )
    out = attention(*make_inputs(2, 1), mask, implementation=implementation)
    assert (
        not np.any(out[0, [0, 3, 4, 5, 6]])
        and not np.any(out[1, 4:])
        and np.all(np.any(out[1, :4], axis=(1, 2)))
    )


def test_there_is_attention_within_shard_map():
    """Of its own or another's: where jax looks which values differ between devices, sums must begin with values that may."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("x")
    arrays = make_inputs(2, 1)
    split = jax.shard_map(
        lambda *x: attention(*x, implementation="xla_chunked"),
        mesh=mesh,
        in_specs=(rows,) * 3,
        out_specs=rows,
    )
    np.testing.assert_allclose(split(*arrays), attention(*arrays), atol=1e-6)
    jax.grad(lambda *x: split(*x).sum())(*arrays)


def test_no_rows_or_keys():
    q, k, v = make_inputs(2, 1)
    assert attention(q[:0], k[:0], v[:0]).shape == (0, 7, 2, 8)
    assert not np.any(attention(q, k[:, :0], v[:, :0], implementation="xla_chunked"))


def test_hidden_keys_do_not_matter():
    q, k, v = make_inputs(2, 1)
    mask = IntervalMask(jnp.full((2, 7), 2), jnp.full((2, 7), 6))
    other = k.at[:, 6:].set(99.0), v.at[:, :2].set(-99.0)
    np.testing.assert_array_equal(attention(q, k, v, mask), attention(q, *other, mask))


def test_bfloat16_stays_bfloat16_and_close():
    low = make_inputs(4, 2, dtype=jnp.bfloat16)
    out = attention(*low)
    assert out.dtype == jnp.bfloat16
    wanted = attention(*(x.astype(jnp.float32) for x in low), implementation="reference")
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, atol=0.03)


def goes_tile_by_tile(*arguments, attend=None):
    """Whether attention is a loop; of a function that was never traced before, or of a given one."""
    return "while" in str(jax.make_jaxpr(attend or (lambda *x: attention(*x)))(*arguments))


def test_what_a_program_prefers_serves_wherever_it_can():
    """Even in a function that was traced under another preference."""
    call = *make_inputs(2, 1), MASKS["intervals"]
    with prefer("xla_chunked"):
        assert goes_tile_by_tile(*call, attend=attention)
    assert not goes_tile_by_tile(*call, attend=attention)


def test_what_cannot_be_preferred_is_refused_in_words():
    with (
        pytest.raises(
            InputError, match="no attention implementation 'flash'; there are cudnn, mosaic_gpu"
        ),
        prefer("flash"),
    ):
        pass
    for name, reason in {
        "mosaic_gpu": "made for GPUs",
        "cudnn": "no NVIDIA GPU",
        "splash": "no TPU",
    }.items():
        with (
            pytest.raises(InputError, match=f"'{name}' cannot be used here: .*{reason}"),
            prefer(name),
        ):
            pass


def test_what_serves_no_such_call_is_not_taken(monkeypatch, caplog):
    """An implementation that is preferred, but not for masks: why is said once, for all to see, and another one serves."""
    sys.modules["mmjax.kernels.attention.api"]._log_once.cache_clear()
    refusing = IMPLEMENTATIONS["xla_chunked"]._replace(
        unsupported=lambda q, k, mask, softcap: "no masks" if mask is not None else None
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "xla_chunked", refusing)
    q, k, v = make_inputs(2, 1)
    with prefer("xla_chunked"):
        assert not goes_tile_by_tile(q, k, v, MASKS["intervals"])
        assert not goes_tile_by_tile(q[:1], k[:1], v[:1], IntervalMask.full(1, 7, 9))
        assert goes_tile_by_tile(q, k, v)
    assert [record.getMessage() for record in caplog.records] == [
        "attention: 'xla_chunked' cannot serve some calls, and another does: no masks"
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_wrong_calls_are_refused_in_words():
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        attention(*make_inputs(3, 2))
    with pytest.raises(
        ValueError, match=r"no attention implementation 'flash'.*mosaic_gpu, reference, splash, xla"
    ):
        attention(*make_inputs(2, 2), implementation="flash")
    with pytest.raises(ValueError, match=r"intervals of \(2, 7\) rows, the queries have \(2, 5\)"):
        attention(*make_inputs(2, 2, length=5), MASKS["intervals"])
    q, k, v = make_inputs(2, 2)
    with pytest.raises(ValueError, match="keys are float32 and values bfloat16"):
        attention(q, k, v.astype(jnp.bfloat16))
    with pytest.raises(
        ValueError, match="'cudnn' cannot serve this call: it would need the mask as an array"
    ):
        attention(q, k, v, MASKS["intervals"], implementation="cudnn")
    with pytest.raises(
        ValueError, match="'splash' cannot serve this call: it knows full and causal masks"
    ):
        attention(q, k, v, MASKS["intervals"], implementation="splash")
    with pytest.raises(
        ValueError, match="'mosaic_gpu' cannot serve this call: it is made for GPUs"
    ):
        attention(q, k, v, implementation="mosaic_gpu")
