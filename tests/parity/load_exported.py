"""What transformers makes of folders that mmjax wrote. Runs in the oracle's environment: python load_exported.py JOBS.json.

Each job has `folder`, `original` (a folder of transformers, or one of its parts: FOLDER#text_config), `inputs` (an npz) and `outputs` (an
npz to write). Prints one JSON object, which has for each job the keys that are missing, unexpected or mismatched, and the settings that
differ; or the error.
"""

import json
import pathlib
import sys
import traceback
from typing import Any

import numpy as np
import torch
from pretrained_encoders import outputs_of
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlavaForConditionalGeneration
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

IGNORED = {"transformers_version", "_name_or_path", "dtype", "architectures"}


def settings(place: str) -> dict[str, object]:
    """What a config.json says, by name, with the default of what may be omitted."""
    folder, _, part = place.partition("#")
    config = AutoConfig.from_pretrained(folder)
    content = (getattr(config, part) if part else config).to_dict()
    parts = {key: content.pop(key, {}) for key in ("text_config", "vision_config")}
    found = cleaned(content)
    for name, inner in parts.items():
        found |= {f"{name} {key}": value for key, value in cleaned(inner).items()}
    return found


def cleaned(content: dict[str, Any]) -> dict[str, Any]:
    if "num_key_value_heads" in content and content.get("head_dim") is None:
        content["head_dim"] = content["hidden_size"] // content["num_attention_heads"]
    rope = content.pop("rope_parameters", None) or {}
    return {key: value for key, value in content.items() if key not in IGNORED} | {
        f"rope {key}": value for key, value in rope.items()
    }


@torch.no_grad()
def run(job: dict[str, str]) -> dict[str, object]:
    model_type = AutoConfig.from_pretrained(job["folder"]).model_type
    text, whole = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, model_type == "llava"
    kind = LlavaForConditionalGeneration if whole else AutoModelForCausalLM if text else AutoModel
    model, loading = kind.from_pretrained(
        job["folder"], output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    with np.load(job["inputs"]) as file:
        inputs = {
            key: torch.from_numpy(file[key])
            for key in file
            if key.startswith(("tokens", "pixels:"))
        }
    results = {}
    for key, value in inputs.items():
        if whole and (images := key.removeprefix("tokens:")) != key:
            pixels = inputs["pixels:own"].permute(0, 3, 1, 2)[: int(images)]
            logits = model.eval()(input_ids=value, pixel_values=pixels, use_cache=False).logits
            results[f"logits:{images}"] = logits.numpy()
        if whole or key.startswith("tokens:"):
            continue
        if key == "tokens" and text:
            results["logits"] = model.eval()(value, use_cache=False).logits.numpy()
        elif key != "tokens" and not text:
            size = key.removeprefix("pixels:")
            results |= {
                f"{name}:{size}": array
                for name, array in outputs_of(model.eval(), value.permute(0, 3, 1, 2)).items()
            }
    np.savez(job["outputs"], **results)
    before, after = settings(job["original"]), settings(job["folder"])
    differing = {
        key: [value, after.get(key)] for key, value in before.items() if after.get(key) != value
    }
    keys = {
        name: sorted(map(str, loading[f"{name}_keys"]))
        for name in ("missing", "unexpected", "mismatched")
    }
    return keys | {"class": type(model).__name__, "differing": differing}


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    jobs = json.loads(pathlib.Path(sys.argv[1]).read_text())
    reports = {}
    for name, job in jobs.items():
        try:
            reports[name] = run(job)
        except Exception:  # what is wrong with one folder must not hide what the others are like
            reports[name] = {"error": traceback.format_exc()}
    print(json.dumps(reports))
