"""The opponent of decode.py: transformers' generate, greedy, with a static cache. Imports nothing of mmjax but the allocator setting.

    python decode_torch_worker.py FOLDER BATCH PROMPTS.json NEW DTYPE

FOLDER has config.json, and weights or none (then they are drawn at random). Says "ready", then answers every line with one of JSON: seconds
of one generation, and the tokens.
"""

import importlib.util
import json
import pathlib
import sys
import time


def keep_freed_memory() -> None:
    """The allocator setting that mmjax runs with on a CPU."""
    spec = importlib.util.spec_from_file_location(
        "host", pathlib.Path(__file__).parents[1] / "mmjax" / "base" / "host.py"
    )
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)
    host.keep_freed_memory()


def load(folder: pathlib.Path, dtype, device: str):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if list(folder.glob("*.safetensors")):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()


def sample(model, tokens, new: int, synchronize) -> dict:
    """One generation. Each token is waited for, as generate itself does to see whether it is an end."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Watch(StoppingCriteria):
        def __init__(self):
            self.times = []

        def __call__(self, input_ids, scores, **_):
            synchronize()
            self.times.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    watch = Watch()
    synchronize()
    begun = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False,
            cache_implementation="static", stopping_criteria=StoppingCriteriaList([watch]), pad_token_id=0,
        )  # fmt: skip
    synchronize()
    done = time.perf_counter()
    each = (watch.times[-1] - watch.times[0]) / max(new - 1, 1)
    chosen = out[:, tokens.shape[1] :].tolist()
    return {
        "prompt": watch.times[0] - begun,
        "token": each,
        "whole": done - begun,
        "tokens": chosen,
    }


def main() -> None:
    import torch

    folder, batch, path, new, dtype = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    model = load(pathlib.Path(folder), getattr(torch, dtype), device)
    model.generation_config.eos_token_id = None
    rows = json.loads(pathlib.Path(path).read_text())[: int(batch)]
    tokens = torch.tensor(rows, device=device)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(sample(model, tokens, int(new), synchronize)), flush=True)


if __name__ == "__main__":
    main()
