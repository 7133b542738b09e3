"""What a model is called with is checked before anything is computed, and a sentence says what is wrong with it."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import InputError
from mmjax.models import check_inputs, parameters
from mmjax.models.config import LanguageModelConfig
from mmjax.typing import Batch
from tests.weights.models import LLAMA, params_of, saved

TOKENS = np.array([[1, 2, 3], [4, 47, 0]], np.int32)
SMALL = LanguageModelConfig(dataclasses.replace(LLAMA, layers=1), compute_dtype="float32")


def with_changed(array, place, value):
    changed = np.array(array)
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([[1, 2]], r"tokens must be an array \[rows, tokens\] of numpy or jax, not a list"),
        ("text", "not a str"),
        (None, "not a NoneType"),
        (TOKENS[0], r"tokens must be \[rows, tokens\]; they are \[3\]"),
        (jnp.asarray(TOKENS)[None], r"they are \[1, 2, 3\]"),
        (TOKENS.astype(np.float32), "tokens must be integers, not float32"),
        (TOKENS > 1, "tokens must be integers, not bool"),
        (with_changed(TOKENS, (1, 2), 48), "ids from 0 to 47, .*; there is 48"),
        (with_changed(TOKENS, (0, 0), -1), "ids from 0 to 47, .*; there is -1"),
        (jnp.asarray(with_changed(TOKENS, (0, 1), 2**30)), "there is 1073741824"),
    ],
)
def test_what_is_no_row_of_ids_is_refused(tokens, said):
    with pytest.raises(InputError, match=said):
        check_inputs.check_row(tokens, None, 48)


def test_a_model_refuses_ids_that_it_does_not_have():
    model_def, _ = parameters.abstract(SMALL)
    model = model_def.merge(params_of(SMALL))
    assert model(TOKENS).shape == (2, 3, 48)
    for ask in (model, model.hidden_states):
        with pytest.raises(InputError, match=r"ids from 0 to 47, .*; there is 50"):
            ask(with_changed(TOKENS, (0, 0), 50))


def test_ids_of_padding_mean_nothing():
    """A tokenizer may pad with an id that the model does not have."""
    padded = with_changed(TOKENS, (1, 2), 400)
    segments = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
    check_inputs.check_row(padded, segments, 48)
    with pytest.raises(InputError, match="there is 400"):
        check_inputs.check_row(padded, np.ones_like(segments), 48)
    with pytest.raises(InputError, match=r"segments must be as many as tokens, \[2, 3\]"):
        check_inputs.check_row(padded, segments[:, :2], 48)
    with pytest.raises(InputError, match="segments must be integers, not bool"):
        check_inputs.check_row(padded, segments > 0, 48)


def test_inside_a_compiled_function_shapes_alone_are_checked():
    check = jax.jit(lambda tokens: check_inputs.check_row(tokens, None, 48) or tokens)
    check(with_changed(TOKENS, (0, 0), 50))
    with pytest.raises(InputError, match=r"they are \[3\]"):
        check(TOKENS[0])


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((16, 16, 3), np.uint8), r"\[16, 16, 3\]"),
        (np.zeros((2, 3, 16, 16), np.float32), r"they are \[2, 3, 16, 16\]"),
        ([[[[0, 0, 0]]]], "not a list"),
        (np.zeros((2, 16, 16, 3), bool), "pixels must be numbers, not bool"),
    ],
)
def test_what_are_no_images_is_refused(pixels, said):
    with pytest.raises(InputError, match=said):
        check_inputs.check_pixels(pixels)


def batch(**changes):
    zeros = np.zeros((2, 3), np.int32)
    rows = {
        "tokens": with_changed(TOKENS, (0, 0), 48),
        "targets": zeros - 1,
        "segment_ids": zeros + 1,
        "prefix_segment_ids": zeros,
        "positions": zeros,
        "visual_embedding_index": with_changed(zeros - 1, (0, 0), 0),
    }
    images = {"images": np.zeros((2, 1, 16, 16, 3), np.uint8), "image_mask": np.ones((2, 1), bool)}
    return Batch(**rows | images | changes)


def test_a_batch_whose_image_token_is_not_in_the_vocabulary_is_right():
    """Visual tokens take its place."""
    check_inputs.check_batch(batch(), 48, 16)
    check_inputs.check_batch(
        batch(images=np.zeros((2, 0, 16, 16, 3), np.uint8), image_mask=np.ones((2, 0), bool)),
        48,
        16,
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"visual_embedding_index": np.zeros((2, 3), np.int32) - 1}, "there is 48"),
        ({"tokens": TOKENS[:, :2]}, r"targets must be as many as tokens, \[2, 2\]"),
        ({"positions": np.zeros(3, np.int32)}, r"positions must be \[rows, tokens\]"),
        ({"segment_ids": np.zeros((2, 3))}, "segment_ids must be integers, not float64"),
        ({"images": np.zeros((2, 16, 16, 3), np.uint8)}, r"images must be \[rows, images, height"),
        ({"images": np.zeros((2, 1, 16, 32, 3), np.uint8)}, "16 x 16 pixels.*they are 32 x 16"),
        ({"images": np.zeros((1, 1, 16, 16, 3), np.uint8)}, "belong to the 2 rows"),
        ({"image_mask": np.ones((2, 2), bool)}, r"image_mask \[2, 2\] must belong"),
        ({"tokens": [[1]]}, "not a list"),
    ],
)
def test_a_batch_whose_arrays_do_not_fit_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        check_inputs.check_batch(batch(**changes), 48, 16)


@pytest.mark.slow
def test_a_list_is_refused_by_the_model_itself(tmp_path):
    """In a process of its own, in which nothing else checks annotations."""
    code = (
        "import sys, mmjax\n"
        "model = mmjax.weights.load_pretrained(sys.argv[1])\n"
        "for tokens in ([[1, 2]], __import__('numpy').array([1, 2])):\n"
        "    try: model(tokens)\n"
        "    except ValueError as error: print(error)\n"
    )
    folder = saved("llama", tmp_path / "llama")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=300
    )
    lines = done.stdout.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "tokens must be an array [rows, tokens] of numpy or jax, not a list",
        "tokens must be [rows, tokens]",
    ], done.stderr


LIGHT = """
import json, sys
sys.argv = json.loads(sys.argv[1])
import importlib
code = importlib.import_module(sys.argv[0]).main(sys.argv if sys.argv[0] == "mmjax.main" else sys.argv[1:])
print(json.dumps([int(code), "jax" in sys.modules, "transformers" in sys.modules]))
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["mmjax.main", "--config=cos", "--mode=plan", "--topology=h100"],
            "--topology must be an accelerator, a colon and a number",
        ),
        (["mmjax.main", "--config=cos", "--mode=plan", "--topology=h99:8"], "h99"),
        (["mmjax.main", "--config=cos", "--mode=plan", "--topology=h100:0x4"], "it is h100:0x4"),
        (["mmjax.port", "there", "taken"], "taken exists already and is not empty"),
        (["mmjax.port", "nowhere", "free"], "There is no nowhere."),
        (
            ["mmjax.graft", "--encoder=run", "--decoder=there", "--out=taken"],
            "taken exists already",
        ),
        (
            ["mmjax.trajectory", "--weights=there", "--text=there/file", "--out=there/file"],
            "there is a file in its place",
        ),
    ],
)
def test_what_can_be_said_at_once_needs_no_jax(command, said, tmp_path):
    for name in ("there", "taken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    name = command[0] if command[0] == "mmjax.main" else f"{command[0]}.__main__"
    command = [name, *command[1:]]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [2, False, False], done.stderr
    assert said in done.stderr and done.stderr.count("\n") == 1
