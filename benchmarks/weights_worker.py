"""The other side of benchmarks/weights.py: safetensors and transformers, in an interpreter that has PyTorch.

Reads a job per line, as JSON, and answers with its seconds.
"""

import json
import os
import pathlib
import shutil
import sys
import time

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}

import torch
import transformers
from safetensors.torch import load_file

transformers.utils.logging.disable_progress_bar()


def tensors_of(job: dict) -> dict[str, torch.Tensor]:
    path = pathlib.Path(job["path"])
    if job["method"].startswith("load_file"):
        return load_file(path / "model.safetensors")
    dtype = getattr(torch, job["dtype"])
    if path.suffix == ".gguf":
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype
        )
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    if job["method"] == "convert":
        model.save_pretrained(job["target"])
    return model.state_dict()


def run(job: dict) -> float:
    """Seconds until every number has been read from the file, or is in memory of its own."""
    begun = time.perf_counter()
    found = tensors_of(job)
    if job["method"].endswith("touched"):
        for tensor in found.values():
            tensor.sum()
    elif job["method"].endswith("copied"):
        found = {name: tensor.clone() for name, tensor in found.items()}
    seconds = time.perf_counter() - begun
    shutil.rmtree(job.get("target") or "", ignore_errors=True)
    return seconds


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    print(
        "ready",
        json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}),
        flush=True,
    )
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
