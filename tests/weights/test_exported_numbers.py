"""Numbers that cannot be read again are not written; dtypes that there are not are refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from mmjax.errors import InputError
from mmjax.port import __main__ as command
from mmjax.port.port import port
from mmjax.weights import load_pretrained, placing, save_pretrained
from mmjax.weights.orbax_folder import save_orbax
from mmjax.weights.save import save_params
from tests.weights.models import CONFIGS, params_of, saved

NORM, UP = "decoder/norm/scale", "decoder/layers/mlp/up/kernel"
TENSORS = {NORM: "model.norm.weight", UP: "model.layers.1.mlp.up_proj.weight"}
PLACES = {NORM: (3,), UP: (1, 5, 7)}


def params(path, value):
    found = params_of(CONFIGS["llama"])
    return found | {path: found[path].at[PLACES[path]].set(value)}


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_not_finite_is_not_written(path, value, dtype, tmp_path):
    with pytest.raises(
        InputError, match=f"Tensor '{TENSORS[path]}' has numbers that are not finite"
    ):
        save_params(params(path, value), CONFIGS["llama"], tmp_path / "new" / "out", dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", PLACES)
def test_what_would_not_be_finite_is_not_written(path, tmp_path):
    found = params(path, -1e6)
    with pytest.raises(
        InputError,
        match=f"Tensor '{TENSORS[path]}' cannot be written as float16: its largest number, 1e\\+06, would be",
    ):
        save_params(found, CONFIGS["llama"], tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
    save_params(found, CONFIGS["llama"], tmp_path / "out", dtype="bfloat16")
    load_pretrained(tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nor_by_orbax(value, tmp_path):
    with pytest.raises(InputError, match=f"{UP} has numbers that are not finite"):
        save_orbax(params(UP, value), CONFIGS["llama"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["huggingface", "orbax"])
def test_nor_by_port(to, tmp_path, capsys):
    folder = saved("llama", tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors[TENSORS[UP]][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert command.main([str(folder), str(tmp_path / "out"), f"--to={to}", "--dtype=float16"]) == 2
    assert TENSORS[UP] in (said := capsys.readouterr().err) or UP in said
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.float64])
def test_any_place_of_any_array(dtype, monkeypatch):
    monkeypatch.setattr(placing, "_CHUNK", 7)
    for shape in ((40,), (5, 3), (1, 40), (2, 3, 4), ()):
        array = np.full(shape, 0.5, dtype)
        assert placing.is_finite(array) and placing.is_finite(array.T)
        for place in np.ndindex(*shape):
            wrong = array.copy()
            wrong[place] = np.nan
            assert not placing.is_finite(wrong) and not placing.is_finite(wrong.T)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16"), np.dtype(jnp.bfloat16)]
)
def test_dtypes_by_name_and_by_themselves(dtype, tmp_path):
    module = load_pretrained(saved("llama", tmp_path / "llama"), dtype=dtype)
    assert (
        module.config.compute_dtype == "bfloat16"
        and module.decoder.lm_head.kernel[...].dtype == "bfloat16"
    )
    save_pretrained(module, tmp_path / "out", dtype=dtype)
    assert {
        str(value.dtype) for value in load_file(tmp_path / "out" / "model.safetensors").values()
    } == {"bfloat16"}


@pytest.mark.parametrize(
    "dtype",
    ["float16", "int8", "bf16", "", None, jnp.float16, np.int8, np.float64, float, 7, object()],
)
def test_other_dtypes_are_refused(dtype, tmp_path):
    folder = saved("llama", tmp_path / "llama")
    with pytest.raises(ValueError, match="it must be one of float32, bfloat16"):
        load_pretrained(folder, dtype=dtype)
    if dtype not in ("float16", None, jnp.float16):
        with pytest.raises(ValueError, match="it must be one of float32, bfloat16, float16"):
            save_pretrained(load_pretrained(folder), tmp_path / "out", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_nor_by_port_as_a_function(tmp_path):
    folder = saved("llama", tmp_path / "llama")
    with pytest.raises(ValueError, match="it must be one of float32, bfloat16, float16"):
        port(str(folder), tmp_path / "out", Console(), dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
