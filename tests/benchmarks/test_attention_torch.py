"""PyTorch's side of the attention benchmark, through the worker in the environment that has torch."""

import os
import pathlib

import attention_cpu
import attention_gate
import pytest
from attention_cases import gate_cases

ROOT = pathlib.Path(__file__).parents[2]
ORACLE = os.environ.get("MMJAX_ORACLE", str(ROOT / ".oracle/bin/python"))

pytestmark = pytest.mark.skipif(
    not pathlib.Path(ORACLE).exists(), reason="no environment with PyTorch (make oracle)"
)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory):
    made = attention_cpu.Worker(ORACLE, tmp_path_factory.mktemp("torch"))
    yield made
    made.close()


@pytest.mark.parametrize("case", gate_cases(), ids=lambda case: case.name)
def test_torch_sees_the_same_mask(worker: attention_cpu.Worker, case):
    prepared = worker.prepared("torch_sdpa", case)
    for direction in ("forward", "gradient"):
        measured = prepared.measured(direction)
        assert measured.run(1) > 0 and measured.calls == 1
    row, kv_head = case.batch - 1, case.kv_heads - 1
    errors = attention_gate.errors(case, prepared.piece(row, kv_head), row)
    assert errors.keys() == attention_cpu.BOUNDS.keys()
    assert attention_gate.wrong(errors, attention_cpu.BOUNDS) is None


@pytest.mark.parametrize(
    "case", [case for case in gate_cases() if case.form != "full"], ids=lambda case: case.name
)
def test_flex_attention_sees_the_same_mask(worker: attention_cpu.Worker, case):
    """Forward only: on a CPU it has no backward pass."""
    prepared = worker.prepared("torch_flex", case)
    prepared.measured("forward")
    row = case.batch - 1
    errors = attention_gate.errors(case, prepared.piece(row, 0), row)
    assert errors["out"] < 1e-5


def test_what_torch_cannot_do_is_said(worker: attention_cpu.Worker):
    packed = next(case for case in gate_cases() if case.form == "segments")
    with pytest.raises(RuntimeError, match="it takes no mask but the causal one"):
        worker.prepared("torch_flash", packed)
    prepared = worker.prepared("torch_cudnn", gate_cases()[0])
    with pytest.raises(RuntimeError):
        prepared.measured("forward")
