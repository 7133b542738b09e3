"""PyTorch's attention as a process of its own, in the interpreter that has torch: the opponent of `attention.py` on a CPU.

Protocol: prints "ready" and its versions as JSON, then answers each line of JSON on standard input with one line:

    {"do": "open", "path": a pickled Case, "name": ...}         -> the remark, in {"remark": ...}
    {"do": "measure", "direction": ..., "number": N}            -> {"seconds": of N times, "calls": in each}
    {"do": "piece", "row": ..., "kv_head": ..., "path": ...}    -> {} when the arrays are in that file
Whatever goes wrong is {"error": ...}.
"""

import ctypes
import json
import pickle
import sys

# The settings of mmjax/base/host.py: one arena, freed memory is kept.
ALLOCATOR = ((-8, 1), (-3, 2**31 - 1), (-1, -1), (-4, 0))
for option, value in ALLOCATOR:
    ctypes.CDLL(None).mallopt(option, value)

import attention_torch  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


def main() -> None:
    print(
        "ready",
        json.dumps({"torch": torch.__version__, "python of torch": sys.version.split()[0]}),
        flush=True,
    )
    prepared, timed = None, {}
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["do"] == "open":
                with open(job["path"], "rb") as file:
                    case = pickle.load(file)
                prepared, timed = (
                    attention_torch.Prepared(
                        job["name"],
                        case,
                        attention_torch.inputs(case, 1, "cpu", torch.float32),
                        "cpu",
                    ),
                    {},
                )
                answer = {"remark": prepared.remark}
            elif job["do"] == "measure":
                measured = timed.get(job["direction"]) or timed.setdefault(
                    job["direction"], prepared.measured(job["direction"])
                )
                answer = {"seconds": measured.run(job["number"]), "calls": measured.calls}
            else:
                np.savez(job["path"], **prepared.piece(job["row"], job["kv_head"]))
                answer = {}
        except Exception as error:  # the benchmark says it in its table
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
