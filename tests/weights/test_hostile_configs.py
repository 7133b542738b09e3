"""Folders whose config and tensors disagree, or are not meant well: one message, at once, and nothing of that size is ever made."""

import copy
import json
import pathlib
import resource
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mmjax.errors import InputError
from mmjax.weights import load_pretrained
from mmjax.weights.load import open_pretrained
from tests.weights.models import saved
from tests.weights.test_fuzz import JSON

MODELS = ("llama", "mixtral", "siglip", "vlm")
ABSURD = [
    0,
    -1,
    1,
    3,
    10**6,
    2**31,
    10**9,
    10**12,
    2**63,
    10**30,
    1e300,
    float("nan"),
    float("inf"),
    "x",
    "",
    None,
    True,
    [],
    [1, 2, 3],
    {},
]
ROOM = 300 * 1024  # kB that opening all of them may take beyond what was taken


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    for name in MODELS:
        saved(name, root / name)
    return root


@pytest.fixture
def folder(sound, tmp_path):
    """A llama to be harmed."""
    for file in (sound / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def settings(folder):
    return json.loads((folder / "config.json").read_text())


def configured(**changes):
    return lambda folder: (folder / "config.json").write_text(
        json.dumps(settings(folder) | changes)
    )


def without(key):
    return lambda folder: (folder / "config.json").write_text(
        json.dumps({k: v for k, v in settings(folder).items() if k != key})
    )


def tensors(change):
    def harm(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return harm


UP = "model.layers.1.mlp.up_proj.weight"
HARMS = {
    "hidden_size": (
        configured(hidden_size=40),
        r"misshapen: model.embed_tokens.weight is \[48, 32\] and should be \[48, 40\]",
    ),
    "absurd hidden_size": (configured(hidden_size=10**12), "should be|whole number"),
    "absurd vocabulary": (configured(vocab_size=2**39), r"should be \[549755813888, 32\]"),
    "more layers": (configured(num_hidden_layers=4), "missing: model.layers.3"),
    "fewer layers": (configured(num_hidden_layers=2), "unexpected: 'model.layers.2"),
    "a thousand million layers": (
        configured(num_hidden_layers=10**9),
        "30 tensors, but a model of its config has more than",
    ),
    "experts": (
        configured(model_type="mixtral", num_local_experts=10**9),
        "tensors, but a model of its config has more than",
    ),
    "no layers": (configured(num_hidden_layers=0), "layers must be positive, not 0"),
    "no heads": (configured(num_attention_heads=0), "num_attention_heads is 0"),
    "heads": (configured(num_key_value_heads=3, head_dim=8), "must be divisible by"),
    "type": (configured(hidden_size="32"), 'hidden_size is "32"; it must be a whole number'),
    "missing key": (without("model_type"), "model_type is ''"),
    "other family": (configured(model_type="gpt2"), "model_type is 'gpt2'; mmjax knows"),
    "long name": (configured(model_type="x" * 10**6), "characters"),
    "other function": (
        configured(hidden_act="relu"),
        'hidden_act is "relu"; mmjax has "silu" or "swish" only',
    ),
    "not a number": (configured(rms_norm_eps=float("nan")), "rms_norm_eps is NaN"),
    "rope": (configured(rope_scaling={"rope_type": "spiral"}), "rope_type is 'spiral'"),
    "rope of nothing": (
        configured(rope_scaling={"rope_type": "linear", "factor": 0}),
        "must be positive",
    ),
    "no object": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "does not hold a JSON object",
    ),
    "no JSON": (
        lambda folder: (folder / "config.json").write_text('{"model_type": '),
        "config.json cannot be read",
    ),
    "deep": (
        lambda folder: (folder / "config.json").write_text("[" * 10**5),
        "config.json cannot be read",
    ),
    "binary": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json cannot be read",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "large config": (
        lambda folder: (folder / "config.json").write_bytes(b" " * (17 << 20)),
        "no config of a model",
    ),
    "missing": (
        tensors(lambda found: found.pop(UP)),
        rf"missing: {UP} \[64, 32\] for decoder/layers/mlp/up/kernel",
    ),
    "extra": (
        tensors(lambda found: found.update(more=np.zeros(3, np.float32))),
        r"unexpected: 'more' \[3\]",
    ),
    "shape": (
        tensors(lambda found: found.update({UP: found[UP].T.copy()})),
        rf"misshapen: {UP} is \[32, 64\] and should be \[64, 32\]",
    ),
    "whole numbers": (
        tensors(lambda found: found.update({UP: np.zeros((64, 32), np.int8)})),
        "has matrices of int8: weights that some package quantised",
    ),
    "NaN": (tensors(lambda found: found[UP].__setitem__((1, 1), np.nan)), "not finite"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_disagreement_is_one_message(harm, folder):
    how, said = HARMS[harm]
    how(folder)
    with pytest.raises(InputError, match=said) as caught:
        load_pretrained(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 2500


def test_many_problems_are_counted(folder):
    tensors(lambda found: [found.pop(name) for name in list(found) if "layers" in name])(folder)
    with pytest.raises(InputError, match=r"and 19 more like the last") as caught:
        load_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 10


def places(content: Any, path: tuple[str, ...] = ()):
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def opens(path: pathlib.Path) -> bool:
    """Whether a folder opens; nothing but InputError may come of it."""
    try:
        open_pretrained(path).close()
    except InputError as error:
        assert len(str(error)) < 5000
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_any_setting_may_be_absurd(name, sound):
    change_every_setting(sound / name, (10**12, None, []))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_any_setting_may_be_anything(name, sound):
    change_every_setting(sound / name, ABSURD)


def change_every_setting(folder, values):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for file in sorted(folder.rglob("config.json")):
        original = json.loads(file.read_text())
        for place in places(original):
            for value in values:
                content = copy.deepcopy(original)
                inner = content
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
                file.write_text(json.dumps(content))
                refused += not opens(folder)
        file.write_text(json.dumps(original))
    assert opens(folder) and refused > 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM


@pytest.mark.parametrize("name", MODELS)
@hypothesis.given(data=st.data())
@hypothesis.settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_config_and_header(name, sound, data):
    """Up to three settings changed, and a byte of the header."""
    file = data.draw(st.sampled_from(sorted((sound / name).rglob("config.json"))))
    weights = file.with_name("model.safetensors")
    original, tensors = file.read_text(), weights.read_bytes()
    content = json.loads(original)
    for place in data.draw(st.lists(st.sampled_from(sorted(places(content))), max_size=3)):
        inner = content
        for key in place[:-1]:
            inner = (
                inner[key] if isinstance(inner, dict) and isinstance(inner.get(key), dict) else {}
            )
        inner[place[-1]] = data.draw(JSON | st.sampled_from(ABSURD))
    at, byte = (
        data.draw(st.integers(0, int.from_bytes(tensors[:8], "little") + 7)),
        data.draw(st.integers(0, 255)),
    )
    try:
        file.write_text(json.dumps(content))
        weights.write_bytes(tensors[:at] + bytes([byte]) + tensors[at + 1 :])
        opens(sound / name)
    finally:
        file.write_text(original)
        weights.write_bytes(tensors)
