"""The command line: every wrong input ends with one clear message and exit code 2, without a traceback and with nothing written."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import types

import pytest

from mmjax import main
from mmjax.base import host
from mmjax.errors import InputError, NonFiniteError, Preempted
from mmjax.runs import answer
from tests import squares
from tests.golden import update as golden

CONFIG = f"--config={golden.CONFIG}"


def run(*arguments: str) -> int:
    return main.main(["mmjax", *arguments])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--confg=x"], "There is no flag --confg. Did you mean config?"),
        ([CONFIG, "--workdr=x"], "Did you mean workdir?"),
        ([CONFIG, "--mode=trian"], "Did you mean train?"),
        ([CONFIG, "--mode=exports"], "There is no mode 'exports'. Did you mean export?"),
        ([CONFIG, "train"], "Unexpected argument 'train'"),
        ([CONFIG, "--workdir="], "--workdir is empty"),
        ([CONFIG, "--image=x.png"], "it belongs to --mode=generate"),
        ([CONFIG, "--mode=generate", "--image=x.png", "--image="], "--image is empty"),
        ([CONFIG, "--mode=evaluate", "--accept_changed_data"], "it belongs to --mode=train"),
        ([CONFIG, "--mode=plan", "--checkpoint=x"], "--checkpoint has no effect with --mode=plan"),
        ([CONFIG, "--workdir=latin-1-\udce9"], "Arguments must be UTF-8"),
        ([CONFIG, "--mode=generate", "--image=\udcff.png"], "Arguments must be UTF-8"),
        (["--workdir=" + "x" * 300], "cannot be"),
        ([CONFIG, "--mode=evaluate", f"--checkpoint={'x' * 300}/1"], "cannot be used: File name"),
        ([CONFIG, "--stop_after_steps=soon"], "--stop_after_steps=soon"),
        ([CONFIG, "--stop_after_steps=0"], "--stop_after_steps must be positive, not 0."),
        (["--config=configs/none.py"], "There is no config file 'configs/none.py'"),
        ([f"{CONFIG}:7bb"], "Did you mean 7b?"),
        ([CONFIG, "--config.stages.pretrain.stepz=3"], "Did you mean steps?"),
        ([CONFIG, "--config.stages.pretrain.steps=three"], "a whole number is expected"),
        ([CONFIG, "--config.stages.pretrain.steps", "three"], "a whole number is expected"),
        ([CONFIG, "--config.stages.pretrain.steps"], "has no value"),
        ([CONFIG, "--config.stages.pretrain.steps", "--mode=train"], "has no value"),
        (
            [CONFIG, "--noconfig.stages.pretrain.data.flip"],
            "write --config.stages.pretrain.data.flip=false",
        ),
        ([CONFIG, "--config.stages.pretrain.model.connector.windows=7,2"], "must tile the grid"),
        (["--config.seed=3", "--workdir=x"], "but there is no --config"),
        (["--workdir=none"], "There is no run in none"),
        ([f"{CONFIG}:7b"], "--config.tokenizer.path=..."),
        ([CONFIG, "--mode=show", "--topology=h100:8"], "it belongs to --mode=plan"),
        (["--workdir=none", "--mode=show"], "There is no run in none"),
        ([CONFIG, "--mode=plan", "--topology=h100"], "a colon and a number of devices"),
        ([CONFIG, f"--against={golden.CONFIG}"], "it belongs to --mode=plan"),
        ([CONFIG, "--mode=plan", "--against="], "--against is empty"),
        (
            [f"{CONFIG}:7b", "--mode=plan", "--against=configs/none.py"],
            "--against=configs/none.py: There is no config file",
        ),
        ([f"{CONFIG}:7b", "--mode=plan", f"--against={golden.CONFIG}:8bb"], "Did you mean 8b?"),
    ],
)
def test_wrong_input_ends_with_one_message_and_code_2(elsewhere, capsys, arguments, message):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mmjax: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(elsewhere.iterdir()) == []


def test_a_plan_needs_no_data_and_writes_nothing(elsewhere, capsys):
    assert run(f"{CONFIG}:7b", "--mode=plan") == 0
    assert "532.37 M" in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []


def test_a_recipe_is_shown_without_its_data_and_nothing_is_written(elsewhere, capsys):
    assert run(f"{CONFIG}:7b", "--config.stages.pretrain.steps=7", "--mode=show") == 0
    shown = capsys.readouterr().out
    assert "\n!     steps: 7\n" in shown and "\n?   path: give a tokenizer file" in shown
    assert list(elsewhere.iterdir()) == []


def test_settings_change_the_recipe_and_not_what_it_is_compared_with(elsewhere, capsys):
    steps = "--config.stages.pretrain.steps=1"
    assert run(f"{CONFIG}:7b", steps, "--mode=plan", f"--against={golden.CONFIG}:7b") == 0
    saving, earlier = (line.split() for line in capsys.readouterr().out.splitlines()[-3:-1])
    assert saving[-2] != "0.0" and earlier[-2] == "100.0"
    assert list(elsewhere.iterdir()) == []


def test_help(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in ("--config", "--topology", "--against", "does not change it", "plan", "75"):
        assert word in text


def test_a_checkpoint_leads_to_its_run(tmp_path):
    checkpoint = str(tmp_path / "elsewhere" / "checkpoints" / "pretrain" / "3")
    options = main.parse(["mmjax", CONFIG, "--mode=evaluate", f"--checkpoint={checkpoint}"])
    assert main._read(options)[1].path == tmp_path / "elsewhere"
    assert main._read(dataclasses.replace(options, workdir="other"))[1].path == pathlib.Path(
        "other"
    )


def test_images_and_prompts_may_be_given_several_times():
    options = main.parse(
        [
            "mmjax",
            CONFIG,
            "--mode=generate",
            "--image=a.png",
            "--image=b.png",
            "--prompt=what, or who?",
        ]
    )
    assert [*options.image] == ["a.png", "b.png"] and [*options.prompt] == ["what, or who?"]
    assert main.parse(["mmjax", CONFIG, "--mode=generate", "--prompt=what?"]).image == ()


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (["--prompt=what?"], ["None what?"]),
        (["--prompt=what?", "--image=a.png"], ["a.png what?"]),
        (["--prompt=a b", "--prompt=c"], ["\ta b\tNone a b", "\tc\tNone c"]),
        (
            ["--image=a.png", "--image=b.png", "--prompt=x", "--prompt=y"],
            [
                f"{image}\t{prompt}\t{image} {prompt}"
                for image in ("a.png", "b.png")
                for prompt in "xy"
            ],
        ),
    ],
)
def test_several_answers_are_a_line_each(elsewhere, capsys, monkeypatch, flags, lines):
    """And one is printed as it is."""
    opened = []

    def open_run(*_, **__):
        opened.append(1)
        said = types.SimpleNamespace(recipe=None, tokenizer=None)
        said.answer = lambda image, prompt, **_: f"{image} {prompt}"
        return said

    monkeypatch.setattr(answer, "open_run", open_run)
    monkeypatch.setattr(answer, "Inputs", lambda *_: types.SimpleNamespace(changed_tokenizer=list))
    for name in ("a.png", "b.png"):
        (elsewhere / name).write_bytes(b"")
    assert run(CONFIG, "--mode=generate", *flags) == 0
    assert capsys.readouterr().out.splitlines() == lines and len(opened) == 1


def test_what_is_missing_of_several_is_said_before_anything_is_loaded(
    elsewhere, capsys, monkeypatch
):
    monkeypatch.setattr(answer, "open_run", None)
    (elsewhere / "a.png").write_bytes(b"")
    flags = ["--image=a.png", "--image=none.png", "--prompt=x"]
    assert run(CONFIG, "--mode=generate", *flags) == 2
    assert "There is no image 'none.png'." in capsys.readouterr().err
    assert run(CONFIG, "--mode=generate", "--image=a.png", "--prompt=x", "--prompt=") == 2
    assert "--prompt is missing" in capsys.readouterr().err


def test_an_answer_of_several_lines_stays_in_its_line():
    assert answer.Answer("a.png", "what\tis it?", "a cat\nand a dog").line() == (
        "a.png\twhat is it?\ta cat and a dog"
    )


def test_the_last_of_equal_settings_wins():
    options = main.parse(
        [
            "mmjax",
            "--config=a.py",
            "--config.seed=1",
            "--config.seed",
            "2",
            "--config.stages.a.trainable=x=y",
        ]
    )
    assert options.overrides == {"seed": "2", "stages.a.trainable": "x=y"}
    assert options.config == "a.py"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("the data are wrong"), 2, "the data are wrong"),
        (NonFiniteError("step 7"), 3, "step 7"),
        (Preempted("Stopped; it is saved."), 75, "saved"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_how_a_run_ends_becomes_the_exit_code(monkeypatch, capsys, error, code, message):
    def fail(options):
        raise error

    monkeypatch.setattr(main, "_dispatch", fail)
    assert run(CONFIG) == code
    assert message in capsys.readouterr().err


def test_an_unexpected_exception_keeps_its_traceback(monkeypatch):
    def fail(options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(main, "_dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        run(CONFIG)


def test_a_wrong_flag_in_a_real_process_starts_no_jax(tmp_path):
    script = (
        "import sys; sys.argv = ['mmjax', '--confg=x']\nfrom mmjax.main import main\ncode = main()\n"
        "print('jax' in sys.modules)\nsys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "False\n")
    assert result.stderr.splitlines() == [result.stderr.strip()]


def test_a_wrong_setting_in_a_real_process(tmp_path):
    command = [sys.executable, "-m", "mmjax.main", CONFIG, "--config.model.vision.heads=3"]
    result = subprocess.run(
        command, cwd=tmp_path, env=_environment(), capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "mmjax: config.stages.pretrain.model.vision.width 128 must be divisible by heads 3.\n"
        "config.stages.finetune.model.vision.width 128 must be divisible by heads 3.\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("records", "changes", "message"),
    [
        (
            None,
            {"data__sources__squares__image_dir": "nowhere"},
            "image_dir: there is no folder 'nowhere'.",
        ),
        (
            [{"image": "0.png"}] * squares.IMAGES,
            {},
            "Source 'squares' has no token to learn from: of 6 samples none can be used (no text: 6). No example could be read:\n"
            '  no text: data.jsonl:1 has neither "text" nor "questions", but \'image\'',
        ),
        (
            [{"image": "0.png", "text": "a red square"}] * 4
            + [{"image": "0.png", "text": " "}] * 4,
            {},
            "Source 'squares': 2 of 6 samples cannot be used (bad text: 2), more than skip_budget=0.01 allows. Mend the data, or raise "
            "data.skip_budget. For example:\n  bad text: data.jsonl:5: ' ' is no text",
        ),
    ],
)
def test_data_that_cannot_be_used_end_a_real_process_with_nothing_written(
    tmp_path, records, changes, message
):
    data = squares.write_data(tmp_path)
    if records is not None:
        squares.write_records(data, records)
    before = squares.contents(tmp_path)
    child = squares.train(data, tmp_path / "runs" / "wrong", **changes)
    _, errors = child.communicate()
    assert (child.returncode, errors) == (2, f"mmjax: {message}\n")
    assert squares.contents(tmp_path) == before and not (tmp_path / "runs").exists()


def _environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(golden.ROOT), os.environ.get("PYTHONPATH")))
        )
    }


def test_the_host_is_prepared_without_overruling_the_user(monkeypatch, tmp_path):
    for name in (
        "JAX_COMPILATION_CACHE_DIR",
        "XDG_CACHE_HOME",
        "JAX_PLATFORMS",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MMJAX_CACHE_DIR", str(tmp_path))
    host.prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    host.prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
    monkeypatch.delenv("MMJAX_CACHE_DIR")
    assert host.cache_dir() == pathlib.Path("~/.cache/mmjax").expanduser()


@pytest.mark.parametrize(("platforms", "cpu"), [("cpu", True), ("cuda,cpu", False), ("tpu", False)])
def test_the_platform_asked_for_decides_about_the_allocator(monkeypatch, platforms, cpu):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert host.computes_on_cpu() is cpu
