"""`python -m mmjax.trajectory`: what it writes, what it says, what it refuses."""

import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mmjax.data.text.tokenizer import open_tokenizer
from mmjax.models import parameters
from mmjax.trajectory import __main__ as trajectory
from mmjax.trajectory.lens import Lens, divergences
from mmjax.weights import load_pretrained
from tests.chat import tiny_models

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = 7
TEXTS = [
    f"the {name} is number {number}, and {'so ' * number}on"
    for number, name in enumerate(("cat", "dog", "bird", "fish"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save(
        tmp_path_factory.mktemp("decoder") / "tiny", tiny_models.language_model(layers=LAYERS)
    )


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


def run(*flags):
    return trajectory.main([str(flag) for flag in flags])


@pytest.mark.parametrize("measure", ["positions", "vocabulary"])
def test_it_writes_what_it_measured(folder, text, tmp_path, capsys, measure):
    out = tmp_path / "a" / "out"
    assert (
        run(
            f"--weights={folder}",
            f"--text={text}",
            f"--out={out}",
            f"--measure={measure}",
            "--length=24",
        )
        == 0
    )
    shown = capsys.readouterr()
    assert not shown.err
    assert shown.out.splitlines()[-1] == str(out / "trajectory.html")
    assert sorted(path.name for path in out.iterdir()) == [
        "trajectory.html",
        "trajectory.json",
        "trajectory.svg",
    ]
    record = json.loads((out / "trajectory.json").read_text())
    assert (record["schema_version"], record["measure"], record["layers"]) == (
        1,
        measure,
        list(range(LAYERS)),
    )
    assert record["text"] | {"digest": "", "file": ""} == {
        "samples": 4,
        "skipped": 0,
        "tokens": 96,
        "longest": 24,
        "digest": "",
        "file": "",
    }
    assert record["command"].startswith("python -m mmjax.trajectory --weights=")
    model_def, params = parameters.split(load_pretrained(folder))
    lens, tokenizer = Lens(model_def, params, measure, 24), open_tokenizer(folder)
    curves = [
        divergences(lens.read(np.array(tokenizer.encode(sample)[:24])), measure) for sample in TEXTS
    ]
    np.testing.assert_allclose(record["samples"], curves, atol=1e-5)
    np.testing.assert_allclose(record["median"], np.median(curves, axis=0), atol=1e-5)
    np.testing.assert_allclose(
        record["quartiles"], np.quantile(curves, [0.25, 0.75], axis=0), atol=1e-5
    )
    assert record["median"][-1] == 0 == record["samples"][2][-1]
    if record["cut"]:
        assert record["cut"]["replaced_layers"] == [record["cut"]["layer"], LAYERS - 1]
        assert record["confidence"]["verdict"] == "low"
        assert f"Cut at layer {record['cut']['layer']} of 7" in shown.out


def test_its_images_load_nothing(folder, text, tmp_path):
    assert run(f"--weights={folder}", f"--text={text}", f"--out={tmp_path}") == 0
    drawn = ElementTree.parse(tmp_path / "trajectory.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    lines = [
        line.get("class")
        for line in drawn.iter("{http://www.w3.org/2000/svg}g")
        if "line" in (line.get("class") or "")
    ]
    assert lines.count("line sample") == 4
    assert lines.count("line median") == 1
    page = (tmp_path / "trajectory.html").read_text()
    for markup in (
        page,
        (tmp_path / "trajectory.svg").read_text().replace("http://www.w3.org/2000/svg", ""),
    ):
        assert not [
            word
            for word in ("<script", "src=", "href=", "url(", "@import", "http:", "https:")
            if word in markup
        ]
    assert "default-src 'none'" in page
    assert page.count("<svg") == 2


def test_lines_of_json_fewer_samples_and_a_whole_model(tmp_path):
    whole = tiny_models.save(tmp_path / "whole", tiny_models.vlm(layers=LAYERS))
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": sample}) for sample in ["a", *TEXTS]))
    assert (
        run(
            f"--weights={whole}",
            f"--text={text}",
            f"--out={tmp_path / 'out'}",
            "--samples=2",
            "--dtype=bfloat16",
        )
        == 0
    )
    record = json.loads((tmp_path / "out" / "trajectory.json").read_text())
    assert (record["text"]["samples"], record["text"]["skipped"], record["model"]["dtype"]) == (
        2,
        1,
        "bfloat16",
    )
    alone = parameters.abstract(tiny_models.language_model(layers=LAYERS))[1]
    assert record["model"]["parameters"] == parameters.count(alone), "of the decoder alone"


def test_a_decoder_too_short_for_two_phases(text, tmp_path, capsys):
    short = tiny_models.save(tmp_path / "short", tiny_models.language_model(layers=2))
    assert run(f"--weights={short}", f"--text={text}", f"--out={tmp_path / 'out'}") == 0
    assert "no cut is proposed" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "trajectory.json").read_text())
    assert record["cut"] is None is record["confidence"]
    assert "no cut is proposed" in (tmp_path / "out" / "trajectory.html").read_text()


def test_a_folder_that_holds_something_keeps_it(folder, text, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    assert run(f"--weights={folder}", f"--text={text}", f"--out={tmp_path}", "--samples=1") == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        "text.txt",
        *(f"trajectory.{end}" for end in ("html", "json", "svg")),
    }
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("weights", "folder"),
    [
        ("fetched:smollm2", "smollm2"),
        ("hf:owner/Name-1.7B", "Name-1.7B"),
        ("a/b/model.Q4_1.gguf", "model.Q4_1"),
        ("a/model-1.5/", "model-1.5"),
        ("fetched:x/y.gguf", "y"),
    ],
)
def test_the_folder_is_named_after_the_weights(weights, folder):
    assert trajectory.folder_name(weights) == folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: --weights, --text"),
        (["--weights={folder}"], "required: --text"),
        (["--weights={folder}", "--text=/no/text"], "There is no text /no/text"),
        (["--weights={folder}", "--text={here}"], "There is no text"),
        (["--weights=/no/model", "--text={text}"], "There is no /no/model"),
        (["--weights={here}", "--text={text}"], "has no weights"),
        (["--weights=fetched:llama", "--text={text}"], "llama"),
        (["--weights={text}", "--text={text}"], "text.txt"),
        (
            ["--weights={vision}", "--text={text}"],
            "is a vision encoder alone, which predicts no tokens",
        ),
        (["--weights={folder}", "--text={empty}"], "There is no text in"),
        (["--weights={folder}", "--text={short}"], "No sample of"),
        (
            ["--weights={folder}", "--text={text}", "--measure=kl"],
            "--measure: invalid choice: 'kl'",
        ),
        (
            ["--weights={folder}", "--text={text}", "--dtype=int8"],
            "--dtype: invalid choice: 'int8'",
        ),
        (
            ["--weights={folder}", "--text={text}", "--samples=0"],
            "--samples must be positive, not 0",
        ),
        (["--weights={folder}", "--text={text}", "--samples=many"], "--samples: invalid int value"),
        (
            ["--weights={folder}", "--text={text}", "--length=2"],
            "--length must be 3 or more, not 2",
        ),
        (["--weights={folder}", "--text={text}", "--out={text}"], "there is a file in its place"),
        (
            ["--weights={folder}", "--text={text}", "--out={text}/out"],
            "there is a file in its place",
        ),
        (
            ["--weights={folder}", "--text={text}", "--tokenizer=/no/tokenizer"],
            "There is no tokenizer file /no/tokenizer",
        ),
        (["--weights={folder}", "--text={text}", "--mesure=positions"], "--mesure"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(flags, message, folder, text, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "short.txt").write_text("a\n\nbc\n")
    places = {
        "folder": folder,
        "text": text,
        "here": tmp_path,
        "empty": tmp_path / "empty.txt",
        "short": tmp_path / "short.txt",
    }
    if any("{vision}" in flag for flag in flags):
        places["vision"] = tiny_models.save(tmp_path / "vision", tiny_models.vision_encoder())
    flags = [flag.format(**places) for flag in flags]
    out = [] if any(flag.startswith("--out") for flag in flags) else [f"--out={tmp_path / 'out'}"]
    assert run(*flags, *out) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("mmjax: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_that_give_no_numbers(text, tmp_path, capsys):
    """Finite ones, whose products are not."""
    config = tiny_models.language_model(layers=LAYERS)
    params = tiny_models.draw(config)
    params["decoder/layers/mlp/down/kernel"] = np.sign(
        params["decoder/layers/mlp/down/kernel"]
    ) * np.float32(3e38)
    tiny_models.save_params(params, config, tmp_path / "huge")
    tiny_models.save_tokenizer(tmp_path / "huge")
    assert (
        run(f"--weights={tmp_path / 'huge'}", f"--text={text}", f"--out={tmp_path / 'none'}") == 2
    )
    assert "of sample 1 is not finite" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_it_is_a_command(folder, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    }
    command = [
        sys.executable,
        "-m",
        "mmjax.trajectory",
        f"--weights={folder}",
        f"--text={tmp_path / 'none'}",
    ]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
