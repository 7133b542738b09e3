"""What the recorders share. They run in the oracle's environment (make_oracle.sh), which knows nothing of mmjax.

    .oracle/bin/python tests/parity/record_NAME.py [OUTPUT]

writes references/NAME.npz, or OUTPUT: inputs, random weights under the names of the library that computed, and its results. Each file also
holds `metadata`, JSON with the script, the seed and the versions that made it.
"""

import json
import pathlib
import platform
import sys
import zlib

import numpy as np
import torch
import transformers

REFERENCES = pathlib.Path(__file__).parent / "references"


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Gives every parameter random values by its name, biases and norms too: a term that starts at zero or one would hide a mistake."""
    for name, parameter in module.named_parameters():
        generator = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator)
                * (0.2 if parameter.ndim == 1 else 0.25)
                + is_scale
            )


def weights(module: torch.nn.Module, prefix: str = "weight:") -> dict[str, np.ndarray]:
    """The parameters by name, each tied one once."""
    return {
        prefix + name: parameter.detach().numpy() for name, parameter in module.named_parameters()
    }


def gradients(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The gradients of those parameters that have one."""
    return {
        "gradient:" + name: parameter.grad.numpy()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def metadata(script: str, seed: int) -> np.ndarray:
    """JSON with all that the numbers depend on."""
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return np.array(json.dumps({"script": pathlib.Path(script).name, "seed": seed} | versions))


def save(script: str, seed: int, arrays: dict[str, np.ndarray]) -> None:
    """Writes the reference of a recorder, to the path on the command line if there is one."""
    name = pathlib.Path(script).stem.removeprefix("record_")
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCES / f"{name}.npz"
    np.savez_compressed(output, metadata=metadata(script, seed), **arrays)
