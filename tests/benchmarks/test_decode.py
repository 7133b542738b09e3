"""Bytes that a token must bring from memory, turns of workers, and the table of generation."""

import json
import os
import shutil

import decode
import decode_jax
import decode_torch
import jax
import jax.numpy as jnp
import pytest
from attention_timing import Clock
from decode_shapes import Shape, cache_bytes, lower_bound, shapes, weight_bytes

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig
from mmjax.weights.pretrained_protocol import stored

CONFIG = DecoderConfig(
    vocabulary=100, width=8, layers=2, heads=2, kv_heads=1, head_dim=4, mlp_width=16
)
ENDLESS = 1e9


def kept(config, dtype):
    model = Shape(config, 4, 2).model(dtype)
    return stored(model, parameters.abstract(model)[1], jnp.dtype(dtype))


def clock(seconds=ENDLESS):
    found = Clock(seconds)
    found.begin(1)
    return found


class Worker:
    """Answers with the numbers that it was given; an exception among them is raised."""

    def __init__(self, times, tokens=None):
        self.times, self.tokens, self.closed = iter(times), tokens, False

    def sample(self):
        found = next(self.times)
        if isinstance(found, Exception):
            raise found
        return {"prompt": found, "token": found, "whole": 10 * found}

    def close(self):
        self.closed = True


def test_weights_of_a_token_are_all_but_the_table_of_embeddings():
    """Worked out by hand: attention 8 x 8, twice 8 x 4, 8 x 8; mlp three times 8 x 16; the head 8 x 100; norms in float32."""
    matrices = 2 * (64 + 32 + 32 + 64 + 3 * 128) + 800
    norms = 2 * 2 * 8 + 8
    looked_up = 3 * 8
    assert (
        weight_bytes(CONFIG, kept(CONFIG, "bfloat16"), 3) == 2 * (matrices + looked_up) + 4 * norms
    )
    assert weight_bytes(CONFIG, kept(CONFIG, "float32"), 3) == 4 * (matrices + looked_up + norms)


def test_a_tied_table_is_read_whole():
    tied = DecoderConfig(**(vars(CONFIG) | {"tie_word_embeddings": True}))
    assert (
        weight_bytes(tied, kept(tied, "float32"), 3)
        == weight_bytes(CONFIG, kept(CONFIG, "float32"), 3) - 4 * 3 * 8
    )


def test_the_cache_grows_with_rows_and_tokens():
    one = 2 * 2 * 1 * 4 * 2  # keys and values, layers, heads, head dimension, bytes
    assert cache_bytes(CONFIG, 1, prompt=10, new=1, itemsize=2) == 11 * one
    assert cache_bytes(CONFIG, 8, prompt=10, new=3, itemsize=2) == 8 * 12 * one


def test_the_lower_bound_is_bytes_over_bandwidth():
    assert lower_bound(1e9, 4e9) == 0.25
    with pytest.raises(ValueError, match="it must be positive"):
        lower_bound(1e9, 0.0)


def test_workers_take_turns_and_one_that_fails_is_out():
    workers = {"a": Worker([9, 1, 2, 3], [[5]]), "b": Worker([9, 1, RuntimeError("broke")])}
    results = decode.take_turns(
        {name: lambda name=name: workers[name] for name in workers}, 3, clock()
    )
    assert [sample["token"] for sample in results["a"]["samples"]] == [1, 2, 3] and results["a"][
        "tokens"
    ] == [[5]]
    assert results["b"]["error"] == "RuntimeError: broke"
    assert workers["a"].closed and workers["b"].closed


def test_what_cannot_be_made_or_has_no_time_is_a_line():
    def broken():
        raise RuntimeError("no such package")

    results = decode.take_turns({"a": broken, "b": lambda: Worker([1] * 9)}, 3, clock())
    assert (
        results["a"]["error"] == "RuntimeError: no such package"
        and len(results["b"]["samples"]) == 3
    )
    assert (
        decode.take_turns({"b": broken}, 3, clock(0.0))["b"]["error"] == "skipped: the time was up"
    )


def line(**workers):
    size = {
        "shape": "x",
        "dtype": "float32",
        "batch": 4,
        "prompt": 8,
        "new": 3,
        "bound": 0.5,
        "same_weights": True,
    }
    return size | {"workers": workers}


def samples(*times, tokens):
    return {
        "samples": [{"prompt": t, "token": t, "whole": 10 * t} for t in times],
        "tokens": tokens,
    }


def test_the_table_has_the_share_of_the_bound_and_the_ratio_round_by_round():
    ours = {"mmjax.inference.generate": samples(1.0, 2.0, 4.0, tokens=[[1, 2, 3]])}
    found = decode.table([line(**ours, transformers=samples(2.0, 2.0, 16.0, tokens=[[1, 2, 9]]))])
    assert "| 2000.000 (1000.000-4000.000) | 2.0 | 500.000 | 25% | 20000.0 | 2.00 |  |" in found[2]
    assert found[3].endswith("|  | 2 of 3 |")


def test_an_opponent_with_numbers_of_its_own_is_not_compared():
    one = line(
        **{
            "mmjax.inference.generate": samples(1.0, tokens=[[1]]),
            "transformers": samples(1.0, tokens=[[1]]),
        }
    )
    assert decode.agreement(one, "transformers") == "1 of 1"
    assert decode.agreement(one | {"same_weights": False}, "transformers") == ""


def test_a_worker_that_failed_says_why():
    assert (
        "| out of memory |"
        in decode.table([line(mmjax={"samples": [], "error": "out of memory"})])[2]
    )


def test_settings_are_those_of_the_whole_model_also_without_its_weights(tmp_path, monkeypatch):
    shape = shapes()["tiny"]
    params = decode_jax.draw(shape, "float32")
    for name, most in (("with", 1 << 40), ("without", 0)):
        monkeypatch.setattr(decode_torch, "MOST_BYTES", most)
        (tmp_path / name).mkdir()
        assert decode_torch.hand_over(shape, params, "float32", tmp_path / name) == (name == "with")
    settings = [
        json.loads((tmp_path / name / "model" / "config.json").read_text())
        for name in ("with", "without")
    ]
    assert settings[0] == settings[1]
    assert not list((tmp_path / "without" / "model").glob("*.safetensors"))


def test_an_opponent_that_does_not_begin_says_what_it_said_last(tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'there is no torch' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(RuntimeError, match="there is no torch"):
        decode_torch.Opponent(str(script), shapes()["tiny"], tmp_path, 1, "float32")


def test_shapes_are_those_of_their_names():
    counts = {
        name: sum(value.size for value in parameters.abstract(shape.model("bfloat16"))[1].values())
        for name, shape in shapes().items()
    }
    assert (
        counts["smollm2-135m"] == 134_515_008
        and counts["1b"] == 1_235_814_400
        and counts["8b"] == 8_030_261_248
    )


def test_an_unknown_shape_or_bandwidth_is_refused(capsys):
    assert decode.main(["--shapes", "huge"]) == 2 and decode.main(["--bandwidth", "0"]) == 2
    assert "There is no shape 'huge'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_times_both_ways_of_mmjax_which_agree(tmp_path):
    given = [
        "--shapes",
        "tiny",
        "--batch",
        "1",
        "2",
        "--rounds",
        "2",
        "--bandwidth",
        "1e10",
        "--out",
        str(tmp_path / "decode"),
    ]
    assert decode.main(given) == 0
    record = json.loads((tmp_path / "decode.json").read_text())
    assert [(line["batch"], sorted(line["workers"])) for line in record["lines"]] == [
        (1, ["mmjax.chat", "mmjax.inference.generate"]),
        (2, ["mmjax.inference.generate"]),
    ]
    one, two = (line["workers"]["mmjax.inference.generate"]["tokens"] for line in record["lines"])
    assert (
        record["lines"][0]["workers"]["mmjax.chat"]["tokens"] == one
        and two[0] == one[0]
        and two[1] != two[0]
    )
    assert "Bandwidth as stated: 10.0 GB/s" in (tmp_path / "decode.md").read_text()


@pytest.mark.slow
def test_transformers_produces_the_same_tokens(tmp_path):
    python = os.environ.get("MMJAX_ORACLE", ".oracle/bin/python")
    if shutil.which(python) is None:
        pytest.skip("needs `make oracle`")
    shape = shapes()["tiny"]
    params = decode_jax.draw(shape, "float32")
    assert decode_torch.hand_over(shape, params, "float32", tmp_path)
    opponent, ours = (
        decode_torch.Opponent(python, shape, tmp_path, 2, "float32"),
        decode_jax.Loop(shape, params, 2, "float32"),
    )
    with jax.default_matmul_precision("highest"):
        ours.sample()
    found = opponent.sample()
    opponent.close()
    assert found.keys() == {"prompt", "token", "whole"} and opponent.tokens == ours.tokens.tolist()
