"""Models saved as folders: the tensors and settings that were loaded, the same bytes again, and the same model for transformers."""

import filecmp
import functools
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmjax.models import parameters
from mmjax.weights import load_pretrained, save_pretrained

HERE = pathlib.Path(__file__).parent
FOLDER = HERE / "references" / "pretrained"
TOLERANCE = 2e-5  # of the largest value of the reference: float32 sums in another order
CASES = sorted(path.name for path in FOLDER.iterdir() if (path / "recorded.npz").exists())
PARTS = {
    "llava/decoder": "language_model.",
    "llava/vision": "vision_tower.vision_model.",
}  # folders of a saved LLaVA; prefix of their tensors
WHOLE = "llava/llava"  # the same model in one folder
SINGLE = [name for name in CASES if name != "llava"]
FOLDERS = [*SINGLE, *PARTS]
TOWERS = (
    "clip_whole",
    "siglip_whole",
    "llava/vision",
)  # whose original is a model of images and text

# What is not written, because the function does not depend on it or a default says it.
UNWRITTEN = {
    "transformers_version",
    "dtype",
    "pretraining_tp",
    "output_router_logits",
    "router_jitter_noise",
    "layer_types",
}
UNWRITTEN_OF_DINOV2 = {
    "apply_layernorm",
    "out_features",
    "out_indices",
    "stage_names",
    "reshape_hidden_states",
    "use_mask_token",
}
UNWRITTEN |= UNWRITTEN_OF_DINOV2 | {
    "drop_path_rate",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
}
WINDOW = {
    "sliding_window",
    "max_window_layers",
}  # of a model of the Qwen family that does not use it


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder that a case is saved to."""
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def save(name):
        save_pretrained(load_pretrained(FOLDER / name), root / name)
        return root / name

    return lambda name: save(name.partition("/")[0]) / name.partition("/")[2]


def original_tensors(name):
    """What transformers wrote: of a vision tower under the published names; without the other tower of a whole model."""
    base = name.partition("/")[0]
    published = FOLDER / f"{base}_published"
    tensors = load_file((published if published.exists() else FOLDER / base) / "model.safetensors")
    if name in PARTS:
        prefix = PARTS[name]
        tensors = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    return {published_name(key): value for key, value in tensors.items() if is_read(key)}


def published_name(name):
    """CLIP and SigLIP have a prefix that transformers has given up."""
    given_up = (
        "embeddings.patch_embedding.",
        "embeddings.position_embedding.",
        "embeddings.class_embedding",
        "encoder.layers.",
    )
    others = ("pre_layrnorm.", "post_layernorm.", "head.")
    return f"vision_model.{name}" if name.startswith((*given_up, *others)) else name


def is_read(name):
    return not name.startswith(
        ("text_model.", "text_projection", "visual_projection", "logit_")
    ) and not name.endswith(("rotary_emb.inv_freq", "position_ids", "mask_token"))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_tensors_are_the_ones_that_were_loaded(name, exported):
    written, original = load_file(exported(name) / "model.safetensors"), original_tensors(name)
    assert written.keys() == original.keys()
    for key, value in original.items():
        np.testing.assert_array_equal(written[key], value.astype(np.float32), err_msg=key)


def test_bfloat16_stays_bfloat16(tmp_path):
    save_pretrained(
        load_pretrained(FOLDER / "llama_bfloat16", dtype="bfloat16"), tmp_path / "saved"
    )
    written, original = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "saved", FOLDER / "llama_bfloat16")
    )
    assert written.keys() == original.keys()
    for key, value in original.items():
        assert written[key].dtype == value.dtype == "bfloat16"
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def settings(config):
    """A config.json of older or newer form as one flat dictionary."""
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope is None and "rope_theta" in config:
        rope = (config.pop("rope_scaling") or {"rope_type": "default"}) | {
            "rope_theta": config.pop("rope_theta")
        }
    if "num_key_value_heads" in config and config.get("head_dim") is None:
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    return config | {f"rope {key}": value for key, value in (rope or {}).items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_settings_are_the_ones_that_were_loaded(name, exported):
    written = json.loads((exported(name) / "config.json").read_text())
    original = json.loads((FOLDER / name.partition("/")[0] / "config.json").read_text())
    original = (
        original["text_config"]
        if name == "llava/decoder"
        else original["vision_config"]
        if name in TOWERS
        else original
    )
    unwritten = UNWRITTEN | (set() if written.get("use_sliding_window", True) else WINDOW)
    expected = {key: value for key, value in settings(original).items() if key not in unwritten}
    assert {key: settings(written).get(key) for key in expected} == expected
    assert written["torch_dtype"] == "float32" and len(written["architectures"]) == 1
    assert written["architectures"] == original.get("architectures", written["architectures"])


@pytest.mark.parametrize("name", CASES)
def test_saved_loaded_and_saved_again_gives_the_same_bytes(name, exported, tmp_path):
    first = exported(name)
    module = load_pretrained(first)
    save_pretrained(module, tmp_path / "second")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "second")
        for path in (tmp_path / "second").rglob("*")
        if path.is_file()
    )
    assert filecmp.cmpfiles(first, tmp_path / "second", files, shallow=False)[1:] == ([], [])
    before = load_pretrained(FOLDER / name)
    assert module.config == before.config
    after = parameters.split(module)[1]
    for path, value in parameters.split(before)[1].items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


@pytest.fixture(scope="module")
def read_by_transformers(exported, tmp_path_factory, oracle_interpreter):
    """Of every exported folder: what transformers says of its keys and settings, and what it computes. One process for all."""
    root = tmp_path_factory.mktemp("read")
    jobs = {}
    for name in [*FOLDERS, WHOLE]:
        base = name.partition("/")[0]
        part = (
            "#text_config"
            if name == "llava/decoder"
            else "#vision_config"
            if name in TOWERS
            else ""
        )
        jobs[name] = {
            "folder": str(exported(name)),
            "original": str(FOLDER / base) + part,
            "inputs": str(FOLDER / base / "recorded.npz"),
            "outputs": str(root / f"{name.replace('/', '_')}.npz"),
        }
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [oracle_interpreter, str(HERE / "load_exported.py"), str(root / "jobs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])

    def read(name):
        assert "error" not in reports[name], reports[name]["error"]
        return reports[name], dict(np.load(jobs[name]["outputs"]))

    return read


@pytest.mark.parametrize("name", [*FOLDERS, WHOLE])
def test_transformers_finds_every_key_and_no_other(name, read_by_transformers):
    report, _ = read_by_transformers(name)
    assert not report["missing"] and not report["unexpected"] and not report["mismatched"], report


@pytest.mark.parametrize("name", [*FOLDERS, WHOLE])
def test_transformers_finds_the_same_settings(name, read_by_transformers):
    report, _ = read_by_transformers(name)
    unimportant = {"use_mask_token"} | (
        WINDOW if name.startswith("qwen") and name != "qwen2_window" else set()
    )
    assert not report["differing"].keys() - unimportant, report["differing"]


@pytest.mark.parametrize("name", [*FOLDERS, WHOLE])
def test_transformers_computes_the_same(name, read_by_transformers):
    _, written = read_by_transformers(name)
    with np.load(FOLDER / name.partition("/")[0] / "recorded.npz") as file:
        original = {key: file[key] for key in file}
    assert written
    for key, value in written.items():
        expected = original["logits:72" if name == "llama_dynamic" else key]
        assert np.abs(value - expected).max() <= TOLERANCE * np.abs(expected).max(), key
