"""Operations and their times from events as the profiler writes them."""

import gzip
import json

import profile_step
import pytest
import trace_events


def process(pid, name):
    return {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}


def row(pid, tid, name):
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def event(name, ts, dur, pid=1, tid=1, **arguments):
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": ts,
        "dur": dur,
        "name": name,
        "args": arguments,
    }


# As on a CPU: the program's operations on a thread among events of the runtime, one operation within another.
HOST = [
    process(701, "/host:CPU"),
    row(701, 5, "tf_XLAPjRtCpuClient/626"),
    event("ThreadpoolListener::Record", 0.0, 900.0, 701, 5),
    event("while.3", 100.0, 500.0, 701, 5, hlo_op="while.3", hlo_module="jit_step"),
    event("dot.1", 120.0, 200.0, 701, 5, hlo_op="dot.1", hlo_module="jit_step"),
    event("dot.1", 330.0, 100.0, 701, 5, hlo_op="dot.1", hlo_module="jit_step"),
    event("end: dot.1", 430.0, 2.0, 701, 5),
    event("tanh", 600.0, 50.0, 701, 5, hlo_op="tanh", hlo_module="jit_step"),
]
# As on a GPU: kernels on streams, and the same again by operation, program and step.
DEVICE = [
    process(1, "/device:GPU:0"),
    process(701, "/host:CPU"),
    row(1, 13, "Stream #13(Compute)"),
    row(1, 14, "Stream #14(MemcpyD2D)"),
    row(1, 20, "XLA Ops"),
    row(1, 21, "XLA Modules"),
    event("gemm_kernel", 0.0, 40.0, 1, 13, hlo_op="dot.7"),
    event("loop_fusion", 40.0, 10.0, 1, 13, hlo_op="fusion.2"),
    event("memcpy", 0.0, 5.0, 1, 14),
    event("dot.7", 0.0, 40.0, 1, 20),
    event("jit_step", 0.0, 60.0, 1, 21),
    event("dot.7", 0.0, 99.0, 701, 3, hlo_op="dot.7"),
]


def times(found):
    return {operation.name: (operation.microseconds, operation.count) for operation in found}


def test_of_a_loop_only_the_time_beside_its_body_counts():
    found = trace_events.operations(HOST)
    assert times(found) == {"dot.1": (300.0, 2), "while.3": (200.0, 1), "tanh": (50.0, 1)}
    assert [operation.name for operation in found] == ["dot.1", "while.3", "tanh"]


def test_kernels_of_a_device_count_once_and_the_host_does_not():
    found = trace_events.operations(DEVICE)
    assert times(found) == {"gemm_kernel": (40.0, 1), "loop_fusion": (10.0, 1), "memcpy": (5.0, 1)}
    assert found[0].example == "dot.7"


def test_a_device_that_shows_no_streams_is_read_by_operation():
    assert times(
        trace_events.operations([one for one in DEVICE if one.get("tid") not in (13, 14)])
    ) == {"dot.7": (40.0, 1)}


def test_rows_do_not_shadow_each_other():
    both = [event("a", 0.0, 10.0, 1, 1, hlo_op="a"), event("b", 2.0, 4.0, 1, 2, hlo_op="b")]
    assert times(trace_events.operations(both)) == {"a": (10.0, 1), "b": (4.0, 1)}


def test_an_event_right_behind_another_is_not_within_it():
    alone = [
        time
        for _, time in trace_events.own_times(
            [event("a", 0.0, 5.0), event("b", 5.0, 5.0), event("c", 5.0, 2.0)]
        )
    ]
    assert alone == [5.0, 3.0, 2.0]


def test_the_table_has_shares_per_step_and_what_it_leaves_out():
    found = trace_events.table(trace_events.operations(HOST), steps=2, most=1)
    assert found[2:] == [
        "| `dot.1` | 0.150 | 54.5% | 1.0 | `dot.1` |",
        "| 2 others | 0.125 | 45.5% | | |",
        "| all | 0.275 | 100% | | |",
    ]


def test_operations_are_found_in_the_program():
    program = """
  %dot.1 = f32[16,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, metadata={op_name="jit(step)/transpose(jvp())/while/body/mlp/dot" id=3}
  ROOT %tuple.2 = (f32[2]{0}, s32[]) fusion(%c), kind=kLoop, metadata={op_name="jit(step)/add"}
  %c = f32[] constant(0)
"""
    found = trace_events.origins(program)
    assert found == {"dot.1": "f32[16,4] transpose(jvp())/mlp/dot", "tuple.2": "f32[2] add"}
    line = trace_events.table(trace_events.operations(HOST), 2, 1, found)[2]
    assert line.endswith("| `dot.1 f32[16,4] transpose(jvp())/mlp/dot` |")


def test_the_newest_trace_of_a_folder_is_read(tmp_path):
    with pytest.raises(ValueError, match="has written no trace"):
        trace_events.read(tmp_path)
    for name, events in (("2026_01_01", []), ("2026_01_02", HOST)):
        (tmp_path / name).mkdir()
        with gzip.open(tmp_path / name / "perfetto_trace.json.gz", "wt") as file:
            json.dump({"traceEvents": events}, file)
    assert trace_events.read(tmp_path) == HOST


@pytest.mark.slow
def test_the_command_traces_a_step(tmp_path, capsys):
    assert (
        profile_step.main(
            ["--shape", "tiny", "--text", "8", "--steps", "2", "--out", str(tmp_path)]
        )
        == 0
    )
    record = json.loads((tmp_path / "profile.json").read_text())
    assert len(record["operations"]) > 20 and record["operations"][0]["microseconds"] > 0
    assert any("dot" in one["name"] or "fusion" in one["name"] for one in record["operations"])
    assert "| all |" in capsys.readouterr().out
