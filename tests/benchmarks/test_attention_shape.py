"""A shape is prepared, checked and timed: with implementations that run on a CPU, and with ones that compute wrongly or not at all."""

import json
import sys

import attention_gate
import attention_jax
import attention_shape
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Case, gate_cases, packed
from attention_timing import Clock

SMALL = packed("small", "small", 2, 24, 8, batch=2, heads=4, kv_heads=2, head_dim=16)
BOUNDS = dict.fromkeys(("out", "dq", "dk", "dv"), 1e-5)


def measure(
    names,
    case=SMALL,
    directions=("forward", "backward", "gradient"),
    seconds=1e9,
    change=lambda prepared: None,
    calls=1,
):
    sets = attention_jax.inputs(case, 2 * calls, jnp.float32)

    def maker(name):
        prepared = attention_jax.Prepared(name, case, sets, calls)
        change(prepared)
        return prepared

    makers = {name: lambda name=name: maker(name) for name in names}
    clock = Clock(seconds)
    clock.begin(1)
    return attention_shape.measure(
        case, makers, directions, clock, rounds=3, target=1e-4, bounds=BOUNDS
    )


@pytest.mark.slow
def test_every_direction_is_timed():
    results = measure(["xla_chunked"], directions=("forward", "backward"))
    assert all(
        len(results[direction]["xla_chunked"]["seconds"]) == 3
        for direction in ("forward", "backward")
    )
    errors = results["forward"]["xla_chunked"]["errors"]
    assert errors.keys() == BOUNDS.keys() and all(0 < error < 1e-5 for error in errors.values())


def test_xla_has_no_backward_pass_of_its_own():
    results = measure(["xla"], calls=2)
    assert (
        "two programs" in results["backward"]["xla"]["error"]
        and len(results["gradient"]["xla"]["seconds"]) == 3
    )


def test_what_cannot_run_here_is_a_line_and_the_rest_is_timed():
    results = measure(["cudnn", "no_such", "xla"], directions=["gradient"])["gradient"]
    assert results["no_such"]["error"] == "ValueError: there is no implementation 'no_such' in jax"
    assert "error" in results["cudnn"] and "seconds" in results["xla"]


def test_what_is_wrong_is_not_timed():
    def wrong_mask(prepared):
        if prepared.name == "xla_chunked":
            prepared.mask = attention_jax.interval_mask(
                Case("", "", 2, 48, 48, 4, 2, 16, form="causal")
            )

    results = measure(
        ["xla_chunked", "jax_nn"], directions=["forward", "gradient"], change=wrong_mask
    )
    for direction in results:
        assert results[direction]["xla_chunked"]["error"].startswith(
            "ArithmeticError: out is off by "
        )
        assert "seconds" not in results[direction]["xla_chunked"]
        assert "seconds" in results[direction]["jax_nn"]


def test_what_has_not_begun_in_time_is_skipped():
    results = measure(["xla"], directions=["forward"], seconds=0.0)
    assert results == {"forward": {"xla": {"error": "skipped: the time of this shape was up"}}}


@pytest.mark.parametrize("name", ["xla_chunked", "jax_nn"])
def test_pieces_are_of_the_right_heads(name: str):
    """A row and a group alone give what they give within the batch: else every implementation would seem wrong."""
    sets = attention_jax.inputs(SMALL, 1, jnp.float32)
    prepared = attention_jax.Prepared(name, SMALL, sets, 1)
    for direction in ("forward", "gradient"):
        prepared.measured(direction).run(1)
    for row, kv_head in ((0, 1), (1, 0)):
        assert (
            attention_gate.wrong(
                attention_gate.errors(SMALL, prepared.piece(row, kv_head), row), BOUNDS
            )
            is None
        )


PADDED = np.array([[1] * 10 + [2] * 20 + [0] * 18])


@pytest.mark.parametrize("name", ["xla_chunked", "jax_nn"])
def test_rows_that_see_nothing_may_be_anything_in_an_opponent(name: str):
    case = Case("padded", "padded", 2, 48, 48, 4, 2, 16, form="segments", segments=PADDED)
    results = measure([name], case, directions=["forward", "gradient"])
    assert all("error" not in results[direction][name] for direction in results)


def test_rows_that_see_nothing_are_zero_in_the_gate():
    case = Case("padded", "padded", 2, 48, 48, 4, 2, 16, form="segments", segments=PADDED)
    sets = attention_jax.inputs(case, 1, jnp.float32, padding=True)
    # Rows that see nothing get the mean of the values from jax.
    for name, right in (("xla_chunked", True), ("jax_nn", False)):
        prepared = attention_jax.Prepared(name, case, sets, 1)
        for direction in ("forward", "gradient"):
            prepared.measured(direction).run(1)
        errors = attention_gate.errors(case, prepared.piece(0, 0), 0, padding=True)
        assert (attention_gate.wrong(errors, BOUNDS) is None) == right


def test_nan_is_out_of_bounds():
    assert (
        attention_gate.wrong({"out": 1e-3, "dq": float("nan")})
        == "dq is off by nan (at most 1e-02)"
    )
    assert attention_gate.wrong({"out": 1e-3, "dq": 9e-3}) is None
    assert "out is off" in attention_gate.wrong({"out": 5e-3})


def gate(monkeypatch: pytest.MonkeyPatch, code: str, patience: float = 60.0) -> dict:
    monkeypatch.setattr(attention_gate, "command", lambda name: [sys.executable, "-c", code])
    return attention_gate.passes("mosaic_gpu", lambda text: None, patience)


def test_the_gate_lets_through_what_is_within_bounds(monkeypatch: pytest.MonkeyPatch):
    line = '{"case": "", "errors": {"out": 0.001, "dq": 0.002}}'
    found = gate(monkeypatch, f"for _ in range({len(gate_cases())}): print('{line}', flush=True)")
    assert found["passed"] and len(found["errors"]) == len(gate_cases())


def test_the_gate_names_the_shape_that_is_wrong(monkeypatch: pytest.MonkeyPatch):
    found = gate(monkeypatch, """print('{"case": "", "errors": {"out": NaN}}', flush=True)""")
    assert not found["passed"] and found["reason"].startswith(
        "gate-full (full, ragged): out is off by nan"
    )


def test_a_kernel_that_ends_its_process_fails_the_gate(monkeypatch: pytest.MonkeyPatch):
    found = gate(monkeypatch, "raise SystemError('illegal address')")
    assert (
        found["reason"]
        == "gate-full (full, ragged): its process ended with 1: SystemError: illegal address"
    )


def test_a_kernel_that_hangs_fails_the_gate(monkeypatch: pytest.MonkeyPatch):
    found = gate(monkeypatch, "import time; time.sleep(1000)", patience=0.2)
    assert found["reason"] == "gate-full (full, ragged): no result within 0 s"


def test_the_gate_computes_every_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention_gate, "gate_cases", lambda: [SMALL])
    attention_gate.answer("xla_chunked")
    answer = json.loads(capsys.readouterr().out)
    assert answer["case"] == "small" and answer["errors"].keys() == BOUNDS.keys()
    assert attention_gate.wrong(answer["errors"]) is None
