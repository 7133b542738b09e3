"""Real models from the cache of `python -m mmjax.fetch`: SmolLM2 against transformers on the same file, DINOv2 against ONNX Runtime."""

import json
import os
import pathlib
import subprocess
import tempfile

import jax
import numpy as np
import pytest

from mmjax.errors import InputError
from mmjax.fetch.downloads import fetched
from mmjax.models import parameters
from mmjax.weights import load_pretrained, save_pretrained

HERE = pathlib.Path(__file__).parent
SMOLLM2_TOLERANCE = 5e-4  # of the largest logit
DINOV2_TOLERANCE = 1e-4  # of the largest value of any token
EVERY = 37  # of the logits that the reference keeps


def fetched_or_skip(name):
    try:
        return fetched(name)
    except InputError as error:
        pytest.skip(str(error))


def compiled(module, call):
    """A function of a module, compiled with the parameters as arguments: as constants they would be compiled in."""
    model_def, params = parameters.split(module)
    function = jax.jit(lambda params, inputs: call(model_def.merge(params), inputs))
    return lambda inputs: function(params, inputs)


def load_smollm2():
    return load_pretrained(next(fetched_or_skip("smollm2").glob("*.gguf")))


def test_smollm2(recorded):
    """Logits of a sentence. After "What is the capital of France?", and after each token of the answer, the next is the most likely."""
    smollm2 = compiled(load_smollm2(), lambda decoder, tokens: decoder(tokens))
    wanted = recorded("smollm2")
    sentence, answer = (
        wanted["tokens"][0],
        np.concatenate([wanted["prompt"][0], wanted["generated"][0]]),
    )
    rows = np.zeros((2, max(len(sentence), len(answer))), np.int32)
    rows[0, : len(sentence)], rows[1, : len(answer)] = sentence, answer
    computed = np.asarray(smollm2(rows))

    logits = computed[0, : len(sentence)]
    assert (
        np.abs(logits[:, ::EVERY] - wanted["logits"]).max() <= SMOLLM2_TOLERANCE * wanted["largest"]
    )
    assert wanted["gaps"].min() > SMOLLM2_TOLERANCE * wanted["largest"]
    np.testing.assert_array_equal(
        computed[1, wanted["prompt"].size - 1 : len(answer) - 1].argmax(axis=1),
        wanted["generated"][0],
    )
    assert wanted["answer"].tobytes().decode() == "The capital of France is Paris."


@pytest.mark.slow
def test_transformers_reads_smollm2_that_came_from_gguf(recorded, oracle_interpreter):
    wanted = recorded("smollm2")
    with (
        tempfile.TemporaryDirectory() as name
    ):  # half a gigabyte, which is not kept as pytest's folders are
        root = pathlib.Path(name)
        save_pretrained(load_smollm2(), root / "saved")
        job = {
            "folder": str(root / "saved"),
            "original": str(root / "saved"),
            "outputs": str(root / "out.npz"),
        }
        (root / "jobs.json").write_text(
            json.dumps({"smollm2": job | {"inputs": str(HERE / "references" / "smollm2.npz")}})
        )
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        command = [oracle_interpreter, str(HERE / "load_exported.py"), str(root / "jobs.json")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])["smollm2"]
        assert not (report["missing"] or report["unexpected"] or report["mismatched"]), report
        with np.load(root / "out.npz") as computed:
            assert (
                np.abs(computed["logits"][0, :, ::EVERY] - wanted["logits"]).max()
                <= SMOLLM2_TOLERANCE * wanted["largest"]
            )


def test_dinov2_small(recorded):
    folder, wanted = fetched_or_skip("dinov2-small"), recorded("dinov2_small")
    encode = compiled(
        load_pretrained(folder),
        lambda encoder, pixels: (*encoder(pixels, layers=(8, 10)), encoder.last(pixels)),
    )
    states = encode(wanted["image"][None])
    for key, state in zip(("hidden:8", "hidden:10", "last"), states, strict=True):
        assert (
            np.abs(state[0, wanted["tokens"]] - wanted[key]).max()
            <= DINOV2_TOLERANCE * wanted[f"largest:{key}"]
        ), key
