"""`python -m mmjax.port`: what it converts, what it says, what it refuses; and that it leaves no files when it is stopped."""

import filecmp
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from mmjax.config import load as config_load
from mmjax.models import parameters
from mmjax.port import __main__ as command
from mmjax.port.port import port
from mmjax.port.table import show
from mmjax.recipe.serialization import digest
from mmjax.runs.workdir import Workdir
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.state import create
from mmjax.weights import load_pretrained
from mmjax.weights.families.base import dumps
from mmjax.weights.pretrained_protocol import TensorMapping
from mmjax.weights.save import save_params
from tests import squares
from tests.weights.files import safetensors_bytes, write_index
from tests.weights.models import CONFIGS, LLAMA, params_of, saved, write_llama

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 60
BESIDE = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"eos_token": "</s>"}',
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": "{}",
}


@pytest.fixture
def llama(tmp_path):
    """A folder of transformers with all that stands beside weights."""
    folder = saved("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(dumps(config | {"max_position_embeddings": 128}))
    for name, text in BESIDE.items():
        (folder / name).write_text(text)
    (folder / "training_args.bin").write_bytes(b"not that")
    return folder


def ported(*arguments):
    return command.main([str(argument) for argument in arguments])


def same_params(left, right):
    left, right = (parameters.split(load_pretrained(folder))[1] for folder in (left, right))
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_array_equal(right[path], value, err_msg=path)


def test_to_orbax_and_back_gives_the_same_bytes(llama, tmp_path, capsys):
    assert ported(llama, tmp_path / "orbax") == 0
    out = capsys.readouterr().out
    assert re.search(r"model\.layers\.\{layer\}\. +3 of each +decoder/layers/", out)
    assert re.search(
        r"  self_attn\.k_proj\.weight +f32\[32, 32\] +attention/key/kernel +f32\[3, 32, 32\]", out
    )
    assert (
        "Beside the weights: chat_template.jinja, generation_config.json, tokenizer.json, tokenizer_config.json\n"
        in out
    )
    assert f"load_pretrained('{tmp_path / 'orbax'}')" in out
    assert {path.name for path in (tmp_path / "orbax").iterdir()} == {
        "mmjax.json",
        "params",
        *BESIDE,
    }
    same_params(llama, tmp_path / "orbax")
    assert ported(tmp_path / "orbax", tmp_path / "huggingface") == 0
    names = ["config.json", "model.safetensors", *BESIDE]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "huggingface").iterdir())
    assert filecmp.cmpfiles(llama, tmp_path / "huggingface", names, shallow=False)[1:] == ([], [])


@pytest.mark.parametrize(
    "name",
    [
        "mixtral",
        pytest.param("siglip", marks=pytest.mark.slow),
        pytest.param("vlm", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_model_goes_both_ways(name, tmp_path):
    assert ported(saved(name, tmp_path / "huggingface"), tmp_path / "orbax") == 0
    assert ported(tmp_path / "orbax", tmp_path / "again") == 0
    same_params(tmp_path / "huggingface", tmp_path / "again")


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float32", marks=pytest.mark.slow),
        "bfloat16",
        pytest.param("float16", marks=pytest.mark.slow),
    ],
)
def test_in_another_dtype(dtype, llama, tmp_path):
    assert ported(llama, tmp_path / "orbax", f"--dtype={dtype}") == 0
    assert ported(tmp_path / "orbax", tmp_path / "huggingface") == 0
    before, after = (
        load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "huggingface")
    )
    for name, value in before.items():
        assert after[name].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(after[name], value.astype(jnp.dtype(dtype)), err_msg=name)


def test_the_dtype_of_the_source_stays(tmp_path):
    save_params(params_of(CONFIGS["llama"]), CONFIGS["llama"], tmp_path / "half", dtype="bfloat16")
    assert ported(tmp_path / "half", tmp_path / "orbax") == 0
    assert ported(tmp_path / "orbax", tmp_path / "huggingface") == 0
    assert filecmp.cmp(
        tmp_path / "half" / "model.safetensors",
        tmp_path / "huggingface" / "model.safetensors",
        shallow=False,
    )


def test_the_same_form_with_other_names(tmp_path, capsys):
    """A model that was saved without its head's class, and what is of no use in it."""
    folder = saved("siglip", tmp_path / "saved")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"text_model.layers.{layer}.w": np.zeros(1, np.float32) for layer in range(3)} | {
        "logit_scale": np.zeros(1, np.float32)
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert ported(folder, tmp_path / "huggingface", "--to=huggingface") == 0
    assert (
        "Not used by the model, skipped: logit_scale, text_model.layers.*.w\n"
        in capsys.readouterr().out
    )
    same_params(folder, tmp_path / "huggingface")


def write_gguf(path):
    """A Llama with a tokenizer of its own, as llama.cpp has it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [*"abcdefgh", "ab", "<|end|>"]
    writer.add_token_list(letters)
    writer.add_token_types([1] * 9 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(9)
    writer.add_chat_template("{{ messages }}")
    shapes = {
        "token_embd": (10, 8),
        "output_norm": (8,),
        "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,),
    }
    shapes |= {f"blk.0.{name}": (8, 8) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    for name, shape in shapes.items():
        writer.add_tensor(
            f"{name}.weight", np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_of_a_gguf_file_the_tokenizer_comes_along(tmp_path, capsys):
    path = write_gguf(tmp_path / "model.gguf")
    assert ported(path, tmp_path / "orbax") == 0
    assert "attn_q.weight        F32[8, 8]" in capsys.readouterr().out.replace("blk.{layer}.", "")
    settings = json.loads((tmp_path / "orbax" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|end|>" and settings["chat_template"] == "{{ messages }}"
    same_params(path, tmp_path / "orbax")
    assert ported(tmp_path / "orbax", tmp_path / "huggingface") == 0
    assert (tmp_path / "huggingface" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "huggingface" / "config.json").read_text())["eos_token_id"] == 9


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint in the folder of a run, saved without any training: nothing of it is converted but the parameters."""
    data = squares.write_data(tmp_path_factory.mktemp("data"))
    workdir = Workdir(tmp_path_factory.mktemp("run") / "run")
    folder, key = workdir.path / "checkpoints" / "squares", jax.random.key(0)
    with workdir.claim(config_load.load(squares.__file__, squares.settings(data))) as (recipe, _):
        stage, random = recipe.stages["squares"], np.random.default_rng(0)
        params = {
            path: random.normal(size=shape.shape).astype(shape.dtype)
            for path, shape in parameters.abstract(stage.model)[1].items()
        }
        with Checkpoints(folder) as kept:
            kept.save(
                2, create(params, stage, key), row=2, metadata={"config_digest": digest(recipe)}
            )
    return folder / "2"


def test_a_checkpoint_of_a_run(trained, tmp_path, capsys):
    assert ported(trained, tmp_path / "huggingface") == 0
    out = capsys.readouterr().out
    assert "a folder of Hugging Face in float32, from step 2 of stage squares" in out
    assert re.search(r"\(of ones and zeros\) +vision/vision_model\.post_layernorm\.weight", out)
    assert {path.name for path in (tmp_path / "huggingface").iterdir()} == {
        "vision",
        "connector",
        "decoder",
    }
    assert ported(trained, tmp_path / "orbax", "--to=orbax", "--dtype=bfloat16") == 0
    module = load_pretrained(tmp_path / "orbax")
    kernel = load_file(tmp_path / "huggingface" / "decoder" / "model.safetensors")[
        "model.layers.0.mlp.up_proj.weight"
    ]
    expected = kernel.T.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(module.decoder.layers.mlp.up.kernel[0], expected)


def test_a_checkpoint_without_its_run_is_refused(trained, tmp_path, capsys):
    alone = shutil.copytree(trained, tmp_path / "checkpoints" / "squares" / "2")
    assert ported(alone, tmp_path / "out") == 2
    assert "it has no config.json" in capsys.readouterr().err


def test_what_a_table_says_of_merged_and_shared_tensors():
    console = Console(file=io.StringIO(), width=120)
    before = [
        TensorMapping("decoder/a", 1, (2, 2), "float32", "", "decoder/a"),
        TensorMapping("decoder/a/lora_a", 1, (2, 1), "float32", "", "decoder/a/lora_a"),
    ]
    show(
        console,
        before,
        [TensorMapping("qkv.weight", 1, (6, 2), "bfloat16", "2 of 3", "decoder/a")],
        [],
    )
    assert re.search(
        r"decoder/a +f32\[2, 2\] +qkv\.weight \(2 of 3\) +bf16\[6, 2\]", console.file.getvalue()
    )
    assert re.search(
        r"decoder/a/lora_a +f32\[2, 1\] +\(merged into its matrix\)", console.file.getvalue()
    )


@pytest.mark.parametrize("width", [40, 80])
def test_on_a_terminal_there_are_bars_and_a_table_that_fits(llama, tmp_path, width):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    port(str(llama), tmp_path / "orbax", console)
    shown = console.file.getvalue()
    assert "reading" in shown and "writing" in shown and "━" in shown


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def tensors(change):
    def harm(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return harm


def configured(**changes):
    return lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | changes)
    )


def only(name, data):
    """The weights replaced by one file."""

    def harm(folder):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(data)

    return harm


def escaping(folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    write_index(folder, {"model.norm.weight": "../model.safetensors"})


UP = "model.layers.1.mlp.up_proj.weight"
HARMS = {
    "truncated": (cut, "is damaged, truncated or of another format"),
    "wrong shape": (
        tensors(lambda found: found.update({UP: found[UP][:-1]})),
        r"misshapen: .*\[63, 32\] and should be \[64, 32\]",
    ),
    "missing tensor": (tensors(lambda found: found.pop(UP)), f"missing: {UP}"),
    "extra tensor": (tensors(lambda found: found.update(more=np.zeros(3))), "unexpected: 'more'"),
    "NaN": (
        tensors(lambda found: found[UP].__setitem__((0, 0), np.nan)),
        f"tensor '{UP}' has numbers that are not finite",
    ),
    "hidden_size": (configured(hidden_size=10**12), "hidden_size is 1000000000000|should be"),
    "layers": (configured(num_hidden_layers=10**9), "more than"),
    "type": (configured(num_hidden_layers="3"), "must be a whole number"),
    "family": (configured(model_type="bert"), "mmjax knows"),
    "path": (escaping, "not a plain path within its own folder"),
    "terabytes": (
        only("model.safetensors", safetensors_bytes(b"{}", length=2**43)),
        "is damaged, truncated or of another format",
    ),
    "tensor of terabytes": (
        only(
            "model.safetensors",
            safetensors_bytes(
                {"w": {"dtype": "F32", "shape": [2**41], "data_offsets": [0, 2**43]}}
            ),
        ),
        "is damaged, truncated or of another format",
    ),
    "pickle": (only("pytorch_model.bin", b"\x80\x04"), "is a pickle"),
    "empty folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        "has no weights: no file at all",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_one_message(harm, llama, tmp_path, capsys):
    how, said = HARMS[harm]
    how(llama)
    before = {path.name for path in tmp_path.iterdir()}
    assert ported(llama, tmp_path / "new" / "out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("mmjax: ") and re.search(said, errors) and errors.count("mmjax: ") == 1
    assert {path.name for path in tmp_path.iterdir()} == before, "something was left"


def test_what_exists_is_not_overwritten(llama, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert ported(llama, tmp_path / "out") == 0, "an empty folder is as good as none"
    assert ported(llama, tmp_path / "out") == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert ported(llama, tmp_path / "file") == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_not_there(tmp_path, capsys):
    assert ported(tmp_path / "meta" / "llama", tmp_path / "out") == 2
    assert "hf:OWNER/NAME" in capsys.readouterr().err


def test_a_form_that_nobody_publishes(tmp_path, capsys):
    import dataclasses

    from mmjax.models.config import LanguageModelConfig
    from mmjax.weights.orbax_folder import save_orbax

    odd = LanguageModelConfig(
        dataclasses.replace(LLAMA, query_key_norm=True, mlp_bias=True), compute_dtype="float32"
    )
    save_orbax(params_of(odd), odd, tmp_path / "orbax")
    assert ported(tmp_path / "orbax", tmp_path / "huggingface") == 2
    assert "No family of published models has the form" in capsys.readouterr().err


def test_a_disk_that_is_full(llama, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "mmjax.base.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1)
    )
    assert ported(llama, tmp_path / "out") == 2
    assert "and there are 0 kB left on its disk" in capsys.readouterr().err


def interrupted(source, target, when, to, number):
    """A conversion that is sent a signal while it reads or writes, and what it said on stderr."""
    command = [sys.executable, "-m", "mmjax.port", str(source), str(target), f"--to={to}"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
    }
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if when in line:
            break
    time.sleep(0.05)  # somewhere in it
    child.send_signal(number)
    return child, child.communicate(timeout=LIMIT)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to", ["orbax", "huggingface"])
@pytest.mark.parametrize("when", ["reading", "writing"])
def test_a_signal_leaves_nothing(when, to, number, code, tmp_path_factory, tmp_path):
    source = tmp_path_factory.getbasetemp() / "hundred_megabytes"
    if not source.exists():
        write_llama(source, width=512, mlp=1024, layers=4, vocabulary=10_000)
    for _ in range(5):
        child, errors = interrupted(source, tmp_path / "new" / "out", when, to, number)
        if child.returncode:
            break
        shutil.rmtree(tmp_path / "new")  # it was too late: all was done
    assert (
        child.returncode == code
        and "nothing half-made was left" in errors
        and "Traceback" not in errors
    )
    assert not list(tmp_path.iterdir())
