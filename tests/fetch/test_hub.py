"""`hf:OWNER/NAME` as a path: what is downloaded, when, and what is said where that is not possible. The Hub is one on this machine."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from huggingface_hub import constants

import mmjax.fetch.hub
import mmjax.weights
from mmjax import main
from mmjax.data.sources.jsonl import JsonlSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.errors import InputError
from mmjax.fetch import __main__ as fetch
from mmjax.fetch.downloads import resolved
from mmjax.models import parameters
from tests.fetch.hub_server import TOKEN, serving
from tests.golden import update as golden
from tests.weights.models import saved

NOBODY = "http://127.0.0.1:9"
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b"{}",
}
BESIDE = {
    "README.md": b"# A model",
    "pytorch_model.bin": b"a pickle",
    "model.fp16.safetensors": b"the same again",
    "onnx/model.onnx": b"another form",
    "deep/config.json": b"{}",
    "deep/model.safetensors": b"another model",
    "a.gguf": b"GGUF",
}
REPOSITORIES = {
    "owner/name": MODEL | BESIDE,
    "owner/quantised": {"q4.gguf": b"4", "q8.gguf": b"8", "config.json": b"{}"},
    "owner/pickled": {"pytorch_model.bin": b"a pickle", "config.json": b"{}"},
    "datasets/owner/captions": {
        "captions.jsonl": b'{"image": "a.png", "text": "a"}\n',
        "images/a.png": b"image",
    },
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The only Hub that is known, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(REPOSITORIES) as server:
        use(monkeypatch, server.address)
        yield server


def use(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(path, **how):
    """The message, which comes without retries and has no more than two sentences."""
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        resolved(path, **how)
    text = str(caught.value)
    assert time.monotonic() - begun < 15 and text.startswith(path) and text.count(". ") < 2
    return text


def test_what_mmjax_reads_of_a_model_is_downloaded_once(hub, capfd, tmp_path):
    folder = resolved("hf:owner/name")
    assert files(folder) == MODEL
    out, errors = capfd.readouterr()
    assert errors == f"hf:owner/name: downloading 0.0 MB into {tmp_path / 'hub'}\n" and not out
    hub.requests.clear()
    assert resolved("hf:owner/name") == resolved("hf://owner/name@main") == folder
    assert not hub.requests and capfd.readouterr() == ("", "")


def test_a_tokenizer_comes_without_weights(hub):
    alone = {name: data for name, data in MODEL.items() if not name.startswith("model")}
    assert files(resolved("hf:owner/name", weights=False)) == alone
    assert "has not been fetched" in refused("hf:owner/name", download=False)
    assert files(resolved("hf:owner/name")) == MODEL


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "hf:owner/name/a.gguf",
            {"a.gguf", "config.json", "tokenizer.json", "chat_template.jinja"},
        ),
        ("hf:owner/name/tokenizer.json", {"tokenizer.json", "config.json", "chat_template.jinja"}),
        ("hf:owner/name/deep", {"deep/config.json", "deep/model.safetensors"}),
        ("hf:owner/name/deep/model.safetensors", {"deep/config.json", "deep/model.safetensors"}),
        ("hf:datasets/owner/captions", {"captions.jsonl", "images/a.png"}),
        ("hf:datasets/owner/captions/images", {"images/a.png"}),
    ],
)
def test_a_part_of_a_repository(hub, path, expected):
    kind, inner = ("datasets/", path.split("/", 3)[3:]) if "datasets" in path else ("", None)
    inner = inner if inner is not None else path.split("/", 2)[2:]
    found = resolved(path)
    folder = found.parents[len(pathlib.Path(*inner).parts) - 1] if inner else found
    assert set(files(folder)) == expected and found == folder.joinpath(*inner)
    assert folder.name == hub.commit(f"{kind}owner/{'captions' if kind else 'name'}")


def test_a_commit_is_a_revision(hub):
    commit = hub.commit("owner/name")
    assert resolved(f"hf:owner/name@{commit}").name == commit
    text = refused("hf:owner/name@v2")
    assert text.endswith("cannot be downloaded: owner/name has no branch, tag or commit 'v2'.")


def test_the_three_folders_of_a_whole_model(hub):
    parts = {
        f"{part}/{name}": b"{}"
        for part in ("vision", "connector", "decoder")
        for name in ("config.json", "model.safetensors")
    }
    hub.repositories["owner/whole"] = parts
    assert files(resolved("hf:owner/whole")) == parts


def test_what_is_missing_in_the_cache_is_brought(hub):
    folder = resolved("hf:owner/name")
    (folder / "model-00002-of-00002.safetensors").resolve().unlink()
    assert "has not been fetched" in refused("hf:owner/name", download=False)
    assert files(resolved("hf:owner/name")) == MODEL


def test_what_another_program_has_brought(hub, monkeypatch, capfd):
    """It may be all or a part of a model: where nobody has listed the files, the Hub is asked, and believed if it is not there."""
    folder = resolved("hf:owner/name")
    shutil.rmtree(folder.parents[1] / "trees")
    hub.repositories["owner/name"] |= {"added": b""}  # another commit, whose listing nobody knows
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    assert resolved("hf:owner/name", download=False) == folder
    use(monkeypatch, NOBODY)
    assert resolved("hf:owner/name") == folder
    use(monkeypatch, hub.address)
    assert resolved("hf:owner/name").name == hub.commit("owner/name") != folder.name


def test_without_a_network(hub, monkeypatch, tmp_path):
    resolved("hf:owner/name")
    use(monkeypatch, NOBODY)
    assert files(resolved("hf:owner/name")) == MODEL
    text = refused("hf:owner/quantised/q4.gguf")
    assert f"{NOBODY} does not answer, and the cache {tmp_path / 'hub'} does not have it." in text
    assert "run `python -m mmjax.fetch hf:owner/quantised/q4.gguf` and copy the cache" in text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert files(resolved("hf:owner/name")) == MODEL
    assert "HF_HUB_OFFLINE is set, and" in refused("hf:owner/quantised/q4.gguf")


def test_a_hub_that_never_answers(hub, monkeypatch):
    monkeypatch.setattr(mmjax.fetch.hub, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "does not answer" in refused("hf:owner/name")


def test_an_unknown_repository(hub):
    text = refused("hf:owner/nome")
    assert f"there is no owner/nome at {hub.address}, or it is private" in text


def test_a_repository_whose_owner_grants_access(hub, monkeypatch, capfd):
    hub.gated.add("owner/name")
    text = refused("hf:owner/name")
    assert f"has to grant access. Ask for it at {hub.address}/owner/name; `hf auth login`" in text
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "grant access" in refused("hf:owner/name")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert files(resolved("hf:owner/name")) == MODEL
    assert "hf_" not in "".join(capfd.readouterr())


def test_a_repository_without_weights_that_mmjax_reads(hub):
    text = refused("hf:owner/quantised")
    assert "such as hf:owner/quantised/q4.gguf, of: q4.gguf, q8.gguf." in text
    assert "owner/pickled has no model.safetensors, and no GGUF file. Pickles" in refused(
        "hf:owner/pickled"
    )
    assert "there is no q5.gguf in owner/quantised" in refused("hf:owner/quantised/q5.gguf")


@pytest.mark.parametrize("path", ["hf:", "hf:name", "hf:owner/name@", "hf:spaces/owner/name"])
def test_what_is_no_name(hub, path):
    with pytest.raises(InputError, match="hf:"):
        resolved(path)
    assert not hub.requests


def test_neither_a_plan_nor_data_are_a_reason_to_download(hub, capsys):
    settings = ["--config.tokenizer.kind=huggingface", "--config.tokenizer.path=hf:owner/name"]
    assert main.main(["mmjax", f"--config={golden.CONFIG}", *settings, "--mode=show"]) == 0
    assert main.main(["mmjax", f"--config={golden.CONFIG}", *settings, "--mode=plan"]) == 2
    assert capsys.readouterr().err.endswith("Run: python -m mmjax.fetch hf:owner/name\n")
    config = JsonlSource(
        "jsonl",
        path="hf:datasets/owner/captions/captions.jsonl",
        image_dir="hf:datasets/owner/captions/images",
    )
    with pytest.raises(InputError, match=r"Run: python -m mmjax\.fetch hf:datasets/owner/captions"):
        config.open(TEMPLATES["plain"])
    assert not hub.requests
    resolved("hf:datasets/owner/captions")
    assert len(config.open(TEMPLATES["plain"])) == 1


def test_a_model_is_loaded(hub, tmp_path):
    folder = saved("llama", tmp_path / "llama")
    hub.repositories["owner/llama"] = files(folder)
    found, expected = (
        parameters.split(mmjax.weights.load_pretrained(path))[1]
        for path in ("hf:owner/llama", folder)
    )
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_the_command_brings_what_is_newest(hub, capsys, monkeypatch):
    assert fetch.main(["hf:owner/name"]) == 0
    out, errors = capsys.readouterr()
    assert hub.commit("owner/name") in out and "downloading" in errors
    hub.repositories["owner/name"] |= {"config.json": b'{"newer": true}'}
    assert fetch.main(["hf:owner/name"]) == 0
    out, errors = capsys.readouterr()
    assert hub.commit("owner/name") in out and "downloading" in errors
    assert (resolved("hf:owner/name") / "config.json").read_bytes() == b'{"newer": true}'
    assert fetch.main(["hf:owner/name"]) == 0
    assert "downloading" not in capsys.readouterr().err
    assert fetch.main(["hf:owner/nome"]) == 2 and fetch.main(["hf:owner/name", "--check"]) == 2
    assert fetch.main(["hf:owner/name", "--from=x"]) == 2


def test_a_process_of_its_own(hub, tmp_path):
    """With the variables that people set, and with nothing on stderr but the one line."""
    variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "mmjax.fetch", "hf:owner/name"]
    found = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    cache = tmp_path / "home" / "hub"
    assert found.returncode == 0 and found.stdout.startswith(f"hf:owner/name is in {cache}")
    assert found.stderr == f"hf:owner/name: downloading 0.0 MB into {cache}\n"


def test_the_package_is_imported_where_it_is_needed():
    code = "import sys; import mmjax.fetch.downloads, mmjax.data.loader; print('huggingface_hub' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_ctrl_c_ends_a_download(hub, tmp_path):
    """And not only when its file is there. The next one brings all of it."""
    variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "mmjax.fetch", "hf:owner/name"]
    hub.held.clear()
    child = subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.PIPE, text=True)
    assert hub.reached.wait(60)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130
    hub.held.set()
    assert child.stderr.read().endswith("\nmmjax: Interrupted; nothing half-made was left.\n")
    assert (
        subprocess.run(command, env=os.environ | variables, stdout=subprocess.DEVNULL).returncode
        == 0
    )
