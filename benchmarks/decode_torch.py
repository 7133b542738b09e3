"""What the opponent of decode.py is given, and the process that it runs in."""

import contextlib
import dataclasses
import json
import pathlib
import subprocess

import decode_jax
import jax
import jax.numpy as jnp
from decode_shapes import Shape

from mmjax.models import parameters
from mmjax.typing import Params
from mmjax.weights.pretrained_protocol import stored
from mmjax.weights.save import save_params

WORKER = pathlib.Path(__file__).with_name("decode_torch_worker.py")
MOST_BYTES = 4 << 30
"""Larger models are not handed over by disk: the opponent draws its own numbers, and its tokens are not compared."""


def hand_over(shape: Shape, params: Params, dtype: str, folder: pathlib.Path) -> bool:
    """Writes the model as transformers reads it; returns whether with its weights."""
    whole = sum(value.nbytes for value in params.values()) <= MOST_BYTES
    if whole:
        save_params(params, shape.model(dtype), folder / "model", dtype=dtype)
    else:
        # The settings of a model are those of one with a single block and few tokens, but for the two numbers.
        least = dataclasses.replace(
            shape, decoder=dataclasses.replace(shape.decoder, layers=1, vocabulary=64)
        )
        kept = stored(
            least.model(dtype), parameters.abstract(least.model(dtype))[1], jnp.dtype(dtype)
        )
        save_params(
            {path: jnp.zeros(value.shape, value.dtype) for path, value in kept.items()},
            least.model(dtype),
            folder / "least",
            dtype=dtype,
        )
        settings = json.loads((folder / "least" / "config.json").read_text())
        settings |= {
            "num_hidden_layers": shape.decoder.layers,
            "vocab_size": shape.decoder.vocabulary,
        }
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(settings))
    return whole


class Opponent:
    """transformers' generate in an interpreter of its own."""

    def __init__(self, python: str, shape: Shape, folder: pathlib.Path, batch: int, dtype: str):
        """folder: as `hand_over` has left it. Raises RuntimeError with what the process said last, if it does not begin."""
        path = folder / f"prompts{batch}.json"
        path.write_text(json.dumps(decode_jax.prompts(shape, batch).tolist()))
        self._log = folder / f"opponent{batch}.log"
        command = [
            python,
            str(WORKER),
            str(folder / "model"),
            str(batch),
            str(path),
            str(shape.new),
            dtype,
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.tokens: list[list[int]] | None = None
        try:
            self._until(lambda line: line.strip() == "ready")
        except RuntimeError:
            self.close()
            raise

    def sample(self) -> decode_jax.Sample:
        """One generation. Raises RuntimeError with what the process said last, if it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            print("sample", file=self._process.stdin, flush=True)
        found = json.loads(self._until(lambda line: line.startswith("{")))
        self.tokens = found.pop("tokens")
        return found

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()

    def _until(self, wanted) -> str:
        """The next line that is wanted; libraries print others."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if wanted(line):
                return line
        said = self._log.read_text().strip().splitlines()
        raise RuntimeError(f"the opponent has ended: {said[-1] if said else 'it said nothing'}")


def backend() -> str:
    """The dtype that generation is timed in: bfloat16 on accelerators."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
