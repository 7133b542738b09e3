"""`--mode=show`: every setting once, as it is, with a sign where somebody chose it."""

import os
import subprocess
import sys

from mmjax import main
from mmjax.config.load import load
from mmjax.config.show import show
from mmjax.data.text.vocabulary import filled
from mmjax.recipe.serialization import to_json
from mmjax.runs.workdir import Workdir, write_json
from tests import squares
from tests.golden import update as golden


def shown_settings(text: str) -> dict[str, tuple[str, str]]:
    """Sign and value by path."""
    found, parents = {}, []
    for line in text.splitlines()[3:]:
        sign, rest = line[0], line[2:]
        name, _, value = rest.strip().partition(":")
        depth = (len(rest) - len(rest.lstrip())) // 2
        parents = [*parents[:depth], name]
        path = ".".join(parents)
        assert path not in found
        found[path] = (sign, value.strip())
    return found


def test_every_setting_is_shown_with_who_chose_it():
    changed = {"stages.pretrain.steps": "10", "model.unroll": "1", "seed": "0"}
    text = show(load(golden.CONFIG, changed), changed)
    assert text.startswith("cos: pretrain -> finetune\n* differs from the default   ! set")
    found = shown_settings(text)
    assert found["stages.pretrain.steps"] == ("!", "10")
    assert found["stages.finetune.steps"] == (" ", "250")
    assert found["stages.pretrain.model.unroll"] == found["stages.finetune.model.unroll"]
    assert found["stages.finetune.model.unroll"] == ("!", "1")
    assert found["seed"] == ("!", "0")
    assert found["stages.pretrain.model.compute_dtype"] == ("*", "float32")
    assert found["stages.pretrain.model.remat"] == (" ", "none")
    assert found["stages.finetune.model.connector.windows"][1] == "(16, 8, 2)"
    assert found["stages.finetune.model.connector.parents"][0] == "*"
    assert found["stages.pretrain.data.flip"] == ("*", "true")
    assert found["stages.pretrain.model.decoder.vocabulary"] == (" ", "none")
    assert found["evaluation.tasks"] == ("*", "('easy_vqa',)")
    assert found["notes.tokens"][0] == " "


def test_no_setting_is_missing():
    recipe = golden.recipe("7b")

    def leaves(value: object, path: str = "") -> set[str]:
        items = value.items() if isinstance(value, dict) else None
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            items = enumerate(value)
        if not items:
            return {path}
        return {leaf for name, item in items for leaf in leaves(item, f"{path}.{name}".lstrip("."))}

    names = {"name", "variant", *(f"stages.{stage}.name" for stage in recipe.stages)}
    shown = shown_settings(show(recipe))
    groups = {path.rpartition(".")[0] for path in shown}
    assert {path for path in shown if path not in groups} == leaves(to_json(recipe)) - names


def test_values_that_the_user_must_give_say_how():
    found = shown_settings(show(golden.recipe("7b")))
    for path in (
        "stages.pretrain.data.sources.captions.path",
        "stages.pretrain.init_from.decoder",
        "tokenizer.path",
    ):
        sign, value = found[path]
        assert sign == "?" and value.endswith(f"with --config.{path}=...")
    assert sum(sign == "?" for sign, _ in found.values()) == 7


def test_the_recipe_of_a_run_is_shown(tmp_path, capsys):
    recipe = filled(load(golden.CONFIG), 296)
    write_json(Workdir(tmp_path).config, to_json(recipe))
    assert main.main(["mmjax", f"--workdir={tmp_path}", "--mode=show"]) == 0
    found = shown_settings(capsys.readouterr().out)
    assert found["stages.finetune.model.decoder.vocabulary"][1] == "296"


def test_no_device_is_needed():
    script = (
        "import sys; from mmjax.main import main\n"
        f"code = main(['mmjax', '--config={squares.__file__}', '--mode=show'])\n"
        "from jax._src import xla_bridge\n"
        "print('devices:', xla_bridge.backends_are_initialized())\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(squares.ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "devices: False"
    assert "? " in done.stdout
