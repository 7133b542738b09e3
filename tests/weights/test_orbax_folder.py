"""Models in our own form: what is written is read, to where it is wanted, and damage is said in one sentence."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mmjax.errors import InputError
from mmjax.weights import load_pretrained, orbax_folder
from mmjax.weights.load import open_pretrained
from mmjax.weights.orbax_folder import save_orbax
from mmjax.weights.pretrained_protocol import Origin, stored
from tests.weights.models import CONFIGS, params_of

ORIGINS = (Origin("decoder", "Mistral", '{"bos_token_id": 1}'),)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax") / "llama"
    save_orbax(params_of(CONFIGS["llama"]), CONFIGS["llama"], folder, origins=ORIGINS)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")


# Each kind and each dtype once or twice; a VLM holds an encoder, too.
QUICK = (("llama", "bfloat16"), ("mixtral", "float32"), ("vlm", "float32"))


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(name, dtype, marks=() if (name, dtype) in QUICK else pytest.mark.slow)
        for name in CONFIGS
        for dtype in ("float32", "bfloat16")
    ],
)
def test_what_is_written_is_read(name, dtype, tmp_path):
    config = CONFIGS[name]
    kinds = stored(config, params_of(config), jnp.dtype(dtype))
    params = {path: value.astype(kinds[path].dtype) for path, value in params_of(config).items()}
    save_orbax(params, config, tmp_path / "model", origins=ORIGINS)
    with open_pretrained(tmp_path / "model") as opened:
        assert (opened.config, opened.origins, opened.dtype) == (config, ORIGINS, dtype)
        assert opened.nbytes == sum(value.nbytes for value in params.values())
        told = []
        found = opened.read(dtype=jnp.dtype(dtype), progress=told.append)
    assert sum(told) == opened.nbytes and found.keys() == params.keys()
    for path, value in params.items():
        assert found[path].dtype == value.dtype and found[path].sharding == SingleDeviceSharding(
            jax.devices()[0]
        )
        assert np.asarray(found[path]).tobytes() == np.asarray(value).tobytes(), path


def test_as_a_module_in_another_dtype(written):
    module = load_pretrained(written, dtype="bfloat16")
    assert module.config.compute_dtype == "bfloat16" and module.origins == ORIGINS
    kernel = module.decoder.layers.mlp.up.kernel[...]
    expected = params_of(CONFIGS["llama"])["decoder/layers/mlp/up/kernel"].astype(jnp.bfloat16)
    assert kernel.dtype == jnp.bfloat16 and bool((kernel == expected).all())


def test_the_first_layers_of_a_stack(written):
    path = "decoder/layers/mlp/up/kernel"
    with open_pretrained(written) as opened:
        found = opened.read({path: jax.ShapeDtypeStruct((2, 32, 64), np.float32)})
    np.testing.assert_array_equal(found[path], params_of(CONFIGS["llama"])[path][:2])


def test_long_arrays_lie_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("mmjax.weights.orbax_folder.CHUNK", 1024)
    save_orbax(params_of(CONFIGS["llama"]), CONFIGS["llama"], tmp_path / "model")
    with open_pretrained(tmp_path / "model") as opened:
        found = opened.read()
    for path, value in params_of(CONFIGS["llama"]).items():
        np.testing.assert_array_equal(found[path], value)


def test_a_folder_that_is_used_is_left_alone(folder):
    with pytest.raises(InputError, match="exists already"):
        save_orbax(params_of(CONFIGS["llama"]), CONFIGS["llama"], folder)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mmjax.weights.orbax_folder.ocp.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        save_orbax(params_of(CONFIGS["llama"]), CONFIGS["llama"], tmp_path / "new" / "model")
    assert not list(tmp_path.iterdir())


def changed(folder, **changes):
    file = folder / "mmjax.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def decoder(**changes):
    def harm(folder):
        config = json.loads((folder / "mmjax.json").read_text())["config"]
        changed(folder, config=config | {"decoder": config["decoder"] | changes})

    return harm


HARMS = {
    "no JSON": (
        lambda folder: (folder / "mmjax.json").write_text("{"),
        "mmjax.json cannot be read",
    ),
    "no object": (
        lambda folder: (folder / "mmjax.json").write_text("[]"),
        "does not hold a JSON object",
    ),
    "version": (lambda folder: changed(folder, version=2), "this mmjax reads version 1"),
    "kind": (lambda folder: changed(folder, kind="audio"), "kind is .audio"),
    "origins": (lambda folder: changed(folder, origins=3), "origins|list|config"),
    "unknown setting": (decoder(colour="red"), "colour: there is no such setting"),
    "type": (decoder(width="wide"), "a whole number is expected"),
    "more layers": (decoder(layers=4), "misshapen: decoder/layers/.* should be \\[4,"),
    "absurd": (decoder(layers=10**9, width=10**12), "should be"),
    "heads": (decoder(kv_heads=3), "must be divisible by"),
    "not tied": (decoder(tie_word_embeddings=True), "unexpected: decoder/lm_head/kernel"),
    "biases": (decoder(qkv_bias=True), "missing: decoder/layers/attention/key/bias"),
    "no params": (lambda folder: shutil.rmtree(folder / "params"), "has no params"),
    "no metadata": (
        lambda folder: (folder / "params" / "_CHECKPOINT_METADATA").unlink(),
        "Orbax cannot read it|no params",
    ),
    "no tree": (
        lambda folder: (folder / "params" / "state" / "_METADATA").unlink(),
        "Orbax cannot read it",
    ),
    "damaged tree": (
        lambda folder: (folder / "params" / "state" / "_METADATA").write_text('{"tree'),
        "Orbax cannot read it",
    ),
    "no data": (
        lambda folder: (folder / "params" / "state" / "manifest.ocdbt").unlink(),
        "Orbax cannot read it",
    ),
    "half of it": (lambda folder: cut(folder), "Orbax cannot read it"),
}


def cut(folder):
    for file in (folder / "params").rglob("d/*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# Orbax takes seconds to refuse what it cannot read.
SLOW_HARMS = ("no metadata", "no tree", "damaged tree", "half of it")


@pytest.mark.parametrize(
    "harm",
    [pytest.param(harm, marks=pytest.mark.slow if harm in SLOW_HARMS else ()) for harm in HARMS],
)
def test_damage_is_one_sentence(harm, folder):
    how, said = HARMS[harm]
    how(folder)
    with pytest.raises(InputError, match=said) as caught, open_pretrained(folder) as opened:
        opened.read()
    assert len(str(caught.value)) < 1500


def test_a_number_that_is_not_finite_is_refused_by_name(tmp_path, monkeypatch):
    params = params_of(CONFIGS["llama"])
    params["decoder/norm/scale"] = params["decoder/norm/scale"].at[3].set(np.nan)
    with monkeypatch.context() as patched:
        # Else it would not be written.
        patched.setattr(orbax_folder, "_is_finite", lambda value: True)
        save_orbax(params, CONFIGS["llama"], tmp_path / "model")
    with pytest.raises(InputError, match="decoder/norm/scale has numbers that are not finite"):
        load_pretrained(tmp_path / "model")
