"""Layouts, and that a step means the same on every mesh (eight virtual CPU devices, in a process of their own)."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from mmjax.distributed.mesh import (
    MESH_AXES,
    axis_sizes,
    check_layout,
    make_mesh,
    parameter_shardings,
    place_batch,
)
from mmjax.errors import InputError
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.recipe.recipe import DataConfig, MeshConfig, OptimizerConfig, Stage
from mmjax.training.state import InitialParams, begin, create, state_shardings
from mmjax.training.step import make_train_step
from mmjax.typing import Batch
from tests import squares

MODEL = VLMConfig(
    ViTConfig(image_size=16, patch_size=4, width=16, layers=1, heads=2, mlp_width=32),
    ResamplerConfig(
        kind="resampler",
        windows=(2,),
        queries=(8,),
        feature_layers=(1,),
        width=16,
        head_dim=8,
        mlp_width=32,
    ),
    DecoderConfig(vocabulary=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=24),
    compute_dtype="float32",
)
STAGE = Stage(
    "s",
    MODEL,
    DataConfig(sources={}, text_length=10),
    OptimizerConfig(
        1e-2, warmup_steps=2, clip_norm=None
    ),  # clipped, a gradient that is too large by a factor would look right
    steps=10,
    batch_size=16,
    gradient_accumulation_steps=2,
)
LARGE = {"weight_std": 0.3, "embedding_std": 0.3}  # so that no gradient is lost in rounding
SURROGATE = VLMConfig(
    ViTConfig(
        image_size=16,
        patch_size=4,
        width=16,
        layers=3,
        heads=2,
        mlp_width=32,
        norm="rms",
        final_norm=True,
        separate_last_layers=1,
        **LARGE,
    ),
    MLPConfig(
        kind="mlp",
        feature_layers=(3,),
        hidden_width=32,
        class_token=True,
        final_norm=True,
        image_boundary_tokens=True,
        weight_std=0.3,
    ),
    DecoderConfig(
        vocabulary=40,
        width=16,
        layers=6,
        heads=4,
        kv_heads=2,
        head_dim=4,
        mlp_width=24,
        replaced_layers=((2, 5),),
        **LARGE,
    ),
    compute_dtype="float32",
)
ON_SURROGATE = dataclasses.replace(
    STAGE,
    model=SURROGATE,
    trainable=(
        "connector/*",
        "vision/final_norm/*",
        "vision/separate_last_layers/*",
        "decoder/translators/*",
    ),
)
ON_FROZEN = dataclasses.replace(
    ON_SURROGATE, trainable=("connector/*", "vision/final_norm/*", "vision/separate_last_layers/*")
)
STAGES = {"whole": STAGE, "surrogate": ON_SURROGATE, "frozen surrogate": ON_FROZEN}
MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(fsdp=-1, data=1),
    "fsdp_tensor": MeshConfig(data=1, fsdp=4, tensor=2),
}


def abstract_mesh(**sizes):
    sizes = dict.fromkeys(MESH_AXES, 1) | sizes
    return AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def spec(shape, names, mesh):
    shapes = {"x": jax.ShapeDtypeStruct(shape, np.float32)}
    shardings, notes = parameter_shardings(shapes, {"x": names}, mesh)
    return shardings["x"].spec, notes


@pytest.mark.parametrize(
    "config, sizes",
    [
        (MeshConfig(), (8, 1, 1, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1, 1, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 1, 1, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 1, 1, 2)),
    ],
)
def test_the_sizes_multiply_to_the_devices(config, sizes):
    assert tuple(axis_sizes(config, 8).values()) == sizes


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(fsdp=3), "multiple of 3 devices, and there are 8"),
        (MeshConfig(data=2, fsdp=2), "needs 4 devices, and there are 8"),
        (MeshConfig(fsdp=-1), "one of them at most -1"),
        (MeshConfig(data=0), "sizes must be positive"),
        (MeshConfig(expert=2), "mesh.expert must be 1.*it is 2"),
        (MeshConfig(context=4), "mesh.context must be 1.*it is 4"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        axis_sizes(config, 8)


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(tensor=4), "vision.heads 2 must be divisible by mesh.tensor = 4"),
        (MeshConfig(), "batch_size 16 must be divisible by 32"),
    ],
)
def test_a_stage_that_does_not_fit_the_mesh_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        check_layout(axis_sizes(config, 16), STAGE)


def test_a_stage_that_fits_is_not_refused():
    for config in MESHES.values():
        check_layout(axis_sizes(config, 8), STAGE)


def test_an_axis_that_does_not_divide_stays_whole_with_a_note():
    found, notes = spec((6, 10), ("embed", "mlp"), abstract_mesh(fsdp=4, tensor=2))
    assert found == PartitionSpec(None, "tensor")
    (note,) = notes
    assert "'embed' of 6 is not divisible by mesh.fsdp = 4" in note


def test_a_large_parameter_may_not_stay_whole():
    with pytest.raises(
        InputError, match=r"'vocabulary' of 32003 is not divisible by mesh.tensor = 2"
    ):
        spec((32003, 4096), ("vocabulary", "embed"), abstract_mesh(tensor=2))


def test_a_mesh_axis_serves_one_axis_of_a_parameter():
    assert spec((8, 8), ("embed", "embed"), abstract_mesh(fsdp=4)) == (
        PartitionSpec("fsdp", None),
        [],
    )


def test_every_parameter_of_the_model_has_a_place():
    shapes, mesh = parameters.abstract(MODEL)[1], abstract_mesh(fsdp=4, tensor=2)
    found, notes = parameter_shardings(shapes, parameters.logical_axes(MODEL), mesh)
    assert found.keys() == shapes.keys() and notes == []
    kernels = {path: placed.spec for path, placed in found.items() if path.endswith("kernel")}
    whole = [path for path, placed in kernels.items() if not {"fsdp", "tensor"} & set(placed)]
    assert whole == []
    query, output = (
        kernels[f"decoder/layers/attention/{name}/kernel"] for name in ("query", "output")
    )
    assert (query, output) == (
        PartitionSpec(None, "fsdp", "tensor"),
        PartitionSpec(None, "tensor", "fsdp"),
    )


@pytest.fixture(scope="module")
def runs():
    """Three steps on each mesh: losses, parameters, how they were laid out, and what the compiled step sends between devices."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"  # compiles in a third of the time
    root = pathlib.Path(__file__).parents[2]
    # Devices wait for each other inside a collective, each on a thread, and several collectives go on at once: with as many threads as
    # devices, which XLA has on a small machine, all may wait.
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
        "NPROC": "32",
    }
    result = subprocess.run(
        [sys.executable, __file__], cwd=root, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]) | {"stderr": result.stderr}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", MESHES)
def test_a_step_is_the_same_on_every_mesh(runs, stage, name):
    one, many = runs[stage]["one"], runs[stage][name]
    assert one["losses"][2] < one["losses"][0]
    assert many["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert many["params"].keys() == one["params"].keys()
    for path, value in one["params"].items():
        np.testing.assert_allclose(many["params"][path], value, rtol=1e-4, atol=2e-5, err_msg=path)
    assert many["gradient"].keys() == one["gradient"].keys()
    whole = np.sqrt(sum(np.linalg.norm(value) ** 2 for value in one["gradient"].values()))
    for path, value in one["gradient"].items():
        error, size = (
            np.linalg.norm(np.subtract(many["gradient"][path], value)),
            np.linalg.norm(value),
        )
        if path.endswith("key/bias"):  # which softmax does not feel: its gradient is rounding alone
            error, size = max(error, size), whole
        assert error < 1e-5 * size, (path, error, size)


def test_through_a_frozen_surrogate_the_connector_learns():
    stage = dataclasses.replace(ON_FROZEN, gradient_accumulation_steps=1)
    model_def, shapes = parameters.abstract(SURROGATE)
    random = np.random.default_rng(1)
    params = {
        path: 0.3 * random.standard_normal(shape.shape, np.float32)
        for path, shape in shapes.items()
    }
    state = create(params, stage, jax.random.key(0))
    state, _ = make_train_step(model_def, stage)(state, _batch(SURROGATE, 0))
    gradient = state.optimizer.mu  # but for a factor
    assert {path.split("/")[0] for path in gradient} == {"connector", "vision"}
    largest = {
        path: np.abs(value).max()
        for path, value in gradient.items()
        if path.startswith("connector/")
    }
    assert len(largest) == 6 and min(largest.values()) > 1e-5, largest


@pytest.mark.slow
def test_each_device_holds_its_share(runs):
    whole = runs["whole"]
    share = {
        name: whole[name]["device_elements"] / whole[name]["elements"] for name in ("one", *MESHES)
    }
    assert (share["one"], share["data"]) == (1.0, 1.0)
    assert share["fsdp"] < 0.25 and share["fsdp_tensor"] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_parameters_travel_and_activations_stay(runs, name):
    """Nothing that is sent is larger than the largest parameter; the activations of all rows would be, several times over."""
    activations = (
        STAGE.batch_size
        // STAGE.gradient_accumulation_steps
        * (MODEL.visual_tokens + STAGE.data.text_length)
        * MODEL.decoder.width
    )
    largest = max(int(np.prod(shape.shape)) for shape in parameters.abstract(MODEL)[1].values())
    assert 0 < runs["whole"][name]["largest_sent"] <= largest < activations / 2
    assert "rematerialization" not in runs["stderr"]


@pytest.mark.slow
def test_a_whole_run_on_several_devices(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    )
    child = squares.train(squares.write_data(tmp_path), tmp_path / "run", batch_size="2")
    _, said = child.communicate()
    assert child.returncode == 0, said
    (stage,) = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]
    assert stage["steps"] == squares.STEPS


def _worker() -> None:
    results = {name: _on_all_meshes(stage) for name, stage in STAGES.items()}
    print(json.dumps(results))


def _on_all_meshes(stage):
    params = {
        path: np.asarray(value)
        for path, value in parameters.initialize(stage.model, jax.random.key(1)).items()
    }
    results = {"one": _three_steps(stage, MeshConfig(), jax.devices()[:1], params)}
    for name, config in MESHES.items():
        results[name] = _three_steps(stage, config, jax.devices(), params)
    return results


def _three_steps(stage, config, devices, params):
    mesh = make_mesh(config, devices)
    model_def, shapes = parameters.abstract(stage.model)
    placed, _ = parameter_shardings(shapes, parameters.logical_axes(stage.model), mesh)
    layout = state_shardings(
        jax.eval_shape(lambda: create(params, stage, jax.random.key(0))), placed, mesh
    )
    with jax.set_mesh(mesh):
        drawn = InitialParams({}, lambda _: parameters.initialize(stage.model, jax.random.key(1)))
        state = begin(drawn, stage, jax.random.key(0), layout)
        assert all(np.array_equal(value, params[path]) for path, value in state.params.items()), (
            "other numbers than on one device"
        )
        batches = [place_batch(_batch(stage.model, seed), mesh) for seed in range(3)]
        # The compiled program refuses a state of another layout: that three steps run shows that the layout is kept.
        step = make_train_step(model_def, stage, layout).lower(state, batches[0]).compile()
        losses = []
        for batch in batches:
            state, metrics = step(state, batch)
            if not losses:
                gradient = {
                    path: np.asarray(value).tolist() for path, value in state.optimizer.mu.items()
                }  # but for a factor
            losses.append(float(metrics.loss.compute()))
    values = [*state.trainable.values(), *state.optimizer.mu.values(), *state.optimizer.nu.values()]
    return {
        "losses": losses,
        "gradient": gradient,
        "params": {path: np.asarray(value).tolist() for path, value in state.params.items()},
        "elements": sum(value.size for value in values),
        "device_elements": sum(value.addressable_shards[0].data.size for value in values),
        "largest_sent": _largest_sent(step.as_text()),
    }


def _largest_sent(program):
    """Elements of the largest array that a collective operation of a compiled program returns."""
    operations = r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    results = re.findall(rf"= (\S.*?) (?:{operations})(?:-start)?\(", program)
    sizes = [
        np.prod([int(n) for n in shape.split(",") if n])
        for result in results
        for shape in re.findall(r"\w\[([\d,]*)\]", result)
    ]
    return int(max(sizes, default=0))


def _batch(model, seed):
    random = np.random.default_rng(seed % 2)
    rows, visual, text = STAGE.batch_size, model.visual_tokens, STAGE.data.text_length
    shape = (rows, visual + text)
    tokens = random.integers(0, model.decoder.vocabulary, shape).astype(np.int32)
    place = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    lengths = visual + random.integers(1, text + 1, (rows, 1))
    segments = (place < lengths).astype(np.int32)
    targets = np.where(
        (place >= visual) & (place < lengths),
        random.integers(0, model.decoder.vocabulary, shape),
        -1,
    ).astype(np.int32)
    slot = np.where(place < visual, place, -1).astype(np.int32)
    images = random.integers(0, 256, (rows, 1, 16, 16, 3)).astype(np.uint8)
    return Batch(
        tokens,
        targets,
        segments,
        np.zeros_like(tokens),
        place.copy(),
        images,
        np.ones((rows, 1), bool),
        slot,
    )


if __name__ == "__main__":
    _worker()
