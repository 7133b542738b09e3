"""References computed by PyTorch and transformers: recorded ones, and live ones where the oracle's environment exists (`make oracle`)."""

import functools
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.models.config import VLMConfig
from mmjax.typing import Params

HERE = pathlib.Path(__file__).parent
TOLERANCE = 2e-5  # of the largest value of the reference: float32 sums in another order
CANNOT_RECORD = 77  # the exit code of a recorder that needs something beside the oracle's environment, which is not here

Reference = dict[str, np.ndarray]


def oracle() -> str | None:
    """The interpreter that has PyTorch and transformers."""
    local = HERE.parents[1] / ".oracle" / "bin" / "python"
    return os.environ.get("MMJAX_ORACLE") or (str(local) if local.exists() else None)


def record(name: str, output: pathlib.Path) -> None:
    """Runs a recorder."""
    interpreter = oracle()
    assert interpreter is not None
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    command = [interpreter, str(HERE / f"record_{name}.py"), str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode == CANNOT_RECORD:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def load(path: pathlib.Path) -> Reference:
    """The arrays of a reference."""
    with np.load(path) as file:
        return {key: file[key] for key in file if key != "metadata"}


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Reference]:
    """A recorded reference by name."""
    return functools.cache(lambda name: load(HERE / "references" / f"{name}.npz"))


@pytest.fixture(scope="session")
def oracle_interpreter() -> str:
    """The interpreter that has PyTorch and transformers."""
    interpreter = oracle()
    if interpreter is None:
        pytest.skip("no environment with PyTorch and transformers; `make oracle` makes one")
    return interpreter


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """A reference by name, computed now."""
    if oracle() is None:
        pytest.skip("no environment with PyTorch and transformers; `make oracle` makes one")
    folder = tmp_path_factory.mktemp("live")

    @functools.cache
    def run(name: str) -> Reference:
        record(name, folder / f"{name}.npz")
        return load(folder / f"{name}.npz")

    return run


@pytest.fixture(scope="session", params=["recorded", "live"] if oracle() else ["recorded"])
def reference(request: pytest.FixtureRequest) -> Callable[[str], Reference]:
    """A reference by name: a test that asks for one runs against the recorded one, and against the live one where there is an oracle."""
    return request.getfixturevalue(request.param)


# Names of transformers, and of torch_resampler.py, as parts of ours.
PARTS = {
    "embeddings.class_embedding": "class_token",
    "embeddings.patch_embedding.weight": "patch/kernel",
    "embeddings.position_embedding.weight": "position",
    "pre_layrnorm": "embedding_norm",
    "layer_norm1": "norm_attention",
    "layer_norm2": "norm_mlp",
    "mlp.fc1": "mlp/up",
    "mlp.fc2": "mlp/down",
    "encoder.layers": "layers",
    "model.": "",
    "embed_tokens.weight": "embedding",
    "lm_head": "lm_head",
    "input_layernorm": "norm_attention",
    "post_attention_layernorm": "norm_mlp",
    "self_attn.out_proj": "attention/output",
    "self_attn.q_proj": "attention/query",
    "self_attn.k_proj": "attention/key",
    "self_attn.v_proj": "attention/value",
    "self_attn.o_proj": "attention/output",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
UNREAD = "post_layernorm"  # CLIP's norm of the class token after the last block


def translate(
    arrays: Mapping[str, np.ndarray], kind: str, prefix: str = ""
) -> dict[str, np.ndarray]:
    """The arrays "KIND:NAME" of a reference, weights or their gradients, by our paths and in our layout."""
    ours: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, value in arrays.items():
        if not name.startswith(f"{kind}:") or UNREAD in name:
            continue
        path, value = _translate_one(name.removeprefix(f"{kind}:"), value)
        layer = re.match(r"(.*layers/)(\d+)/(.*)", prefix + path)
        if layer:
            layers.setdefault(layer[1] + layer[3], {})[int(layer[2])] = value
        else:
            ours[prefix + path] = value
    return ours | {
        path: np.stack([stack[index] for index in range(len(stack))])
        for path, stack in layers.items()
    }


def _translate_one(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    for theirs, part in PARTS.items():
        name = name.replace(theirs, part)
    path = re.sub(r"(blocks/\d+)/(up|down)/", r"\1/mlp/\2/", name.replace(".", "/"))
    if path.endswith("patch/kernel"):  # [width, channel, row, column]
        return path, value.transpose(2, 3, 1, 0).reshape(-1, len(value))
    if path.endswith("/weight"):
        return path.removesuffix("weight") + ("scale" if value.ndim == 1 else "kernel"), value.T
    return path, value


@pytest.fixture(scope="session")
def translated() -> Callable[..., dict[str, np.ndarray]]:
    return translate


@pytest.fixture(scope="session")
def complete() -> Callable[[VLMConfig, Mapping[str, np.ndarray]], Params]:
    """Parameters of a whole model from those of a part; the others are zero and must not be read."""

    def make(config: VLMConfig, part: Mapping[str, np.ndarray]) -> Params:
        leaves = parameters.abstract(config)[1]
        assert set(part) <= set(leaves), sorted(set(part) - set(leaves))
        for path, value in part.items():
            assert value.shape == leaves[path].shape, (path, value.shape, leaves[path].shape)
        return {
            path: jnp.asarray(part[path] if path in part else np.zeros(leaf.shape, np.float32))
            for path, leaf in leaves.items()
        }

    return make


def assert_close(
    ours: object, theirs: np.ndarray, name: str = "", lower_bound: float = 0.0
) -> None:
    """Equal to TOLERANCE of the largest value, or of `lower_bound` if that is larger."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), lower_bound)
    assert error <= TOLERANCE, f"{name}: off by {error:.1e} of the largest value"


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    return assert_close


@pytest.fixture(scope="session")
def close_trees() -> Callable[[Mapping[str, object], Mapping[str, np.ndarray]], None]:
    """Every array of the reference is there and close."""

    def check(ours: Mapping[str, object], theirs: Mapping[str, np.ndarray]) -> None:
        assert theirs and set(theirs) <= set(ours), sorted(set(theirs) - set(ours))
        # Some gradients are zero but for rounding, such as that of a key's bias, which the softmax does not see.
        lower_bound = 1e-2 * max(np.abs(value).max() for value in theirs.values())
        for path, value in theirs.items():
            assert_close(ours[path], value, path, lower_bound)

    return check
