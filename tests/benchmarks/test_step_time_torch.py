"""mmjax and PyTorch take the same step: same loss and same gradient norm from the same parameters and batch, for every kind of shape."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_time_batches
import step_time_folder
import synthetic
from step_time_measure import TOLERANCE
from step_time_shapes import Shape
from step_time_stages import language_stage, llama32_1b, make
from step_time_workers import Worker, WorkerError, start_torch

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LoRAConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.linear import LinearConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.recipe.recipe import ParameterGroup, Stage
from mmjax.training import state as training_state
from mmjax.training.step import make_train_step
from mmjax.typing import Batch

STEPS = 2
TEXT = 12
CLIP = ViTConfig(image_size=16, patch_size=4, width=32, layers=2, heads=2, mlp_width=48)
PLAIN = dataclasses.replace(
    CLIP, norm="rms", class_token=False, embedding_norm=False, activation="gelu"
)
DINO = dataclasses.replace(
    CLIP, activation="gelu", embedding_norm=False, patch_bias=True, layer_scale=True
)
DECODER = DecoderConfig(
    vocabulary=64,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    embedding_std=0.5,
)
RESAMPLER = ResamplerConfig(
    "resampler", (4, 2), (2, 8), (1, 2), width=32, head_dim=16, mlp_width=48, query_std=0.5
)
LINEAR = LinearConfig("linear", (2,))
MLP = MLPConfig("mlp", (2,), 40, class_token=True, final_norm=True, image_boundary_tokens=True)


def model(vision: ViTConfig, connector, decoder: DecoderConfig = DECODER, **settings) -> VLMConfig:
    return VLMConfig(vision, connector, decoder, compute_dtype="float32", **settings)


def shared_prefix(stage: Stage, seed: int) -> Batch:
    """Rows in which two questions share an image and do not see each other, then padding."""
    batch = synthetic.make_batch(stage, seed)
    visual = stage.model.visual_tokens
    half = visual + TEXT // 2
    place = np.arange(batch.tokens.shape[1])
    segments = np.where(
        place < visual, 1, np.where(place < half, 2, np.where(place < half + 4, 3, 0))
    )
    positions = np.where(segments == 3, place - half + visual, np.where(segments == 0, 0, place))
    ends = (place == half - 1) | (place >= half + 3)

    def rows(row: np.ndarray) -> np.ndarray:
        return np.broadcast_to(row, batch.tokens.shape).astype(np.int32)

    return dataclasses.replace(
        batch,
        segment_ids=rows(segments),
        prefix_segment_ids=rows(np.where(segments >= 2, 1, 0)),
        positions=rows(positions),
        targets=np.where(ends, -1, batch.targets).astype(np.int32),
    )


def shapes() -> dict[str, Shape]:
    def plain(
        name: str, vlm: VLMConfig, batch: Callable = synthetic.make_batch, **settings
    ) -> Shape:
        stage = make(name, vlm, TEXT, rows=2, rate=1e-3, **settings)
        return Shape(
            name,
            stage,
            lambda count: [(made, made) for made in (batch(stage, seed) for seed in range(count))],
        )

    every, reader = ("*",), ("vision/*", "connector/*")
    groups = (
        ParameterGroup("vision/*", 0.02),
        ParameterGroup("connector/*", 0.5, weight_decay=0.1),
    )
    lora = LoRAConfig(rank=4, alpha=8.0)
    cut = dataclasses.replace(
        DECODER, layers=6, replaced_layers=((2, 5),), tie_word_embeddings=True
    )
    late = dataclasses.replace(CLIP, layers=3, separate_last_layers=1, final_norm=True)
    dino = dataclasses.replace(DINO, final_norm=True)
    last = dataclasses.replace(MLP, feature_layers=(3,))
    narrow = dataclasses.replace(
        llama32_1b(),
        vocabulary=64,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
    )
    packed = language_stage("packed", narrow, 64, 2, full=False)
    found = [
        plain(
            "resampler, packed rows that share a prefix",
            model(PLAIN, dataclasses.replace(RESAMPLER, norm="rms")),
            shared_prefix,
            trainable=every,
        ),
        plain(
            "linear map on CLIP, rematerialised",
            model(CLIP, LINEAR, remat="full"),
            trainable=reader,
            groups=groups,
        ),
        plain(
            "low rank beside a frozen decoder",
            model(CLIP, LINEAR, lora=lora),
            trainable=(*reader, "*/lora_a", "*/lora_b"),
            groups=groups,
        ),
        plain(
            "surrogate, late blocks trained",
            model(late, last, cut),
            trainable=("connector/*", "vision/final_norm/*", "vision/separate_last_layers/*"),
        ),
        plain("MLP on DINOv2", model(dino, MLP), trainable=("connector/*",)),
        Shape("text alone", packed, step_time_batches.maker("llm_1b", packed)),
        Shape("packed and padded", packed, step_time_batches.maker("packed", packed)),
    ]
    return {shape.name: shape for shape in found}


SHAPES = shapes()


@pytest.fixture
def start(oracle_interpreter: str) -> Iterator[Callable[[pathlib.Path], Worker]]:
    """Starts workers on folders."""
    started: list[Worker] = []

    def begin(folder: pathlib.Path) -> Worker:
        started.append(start_torch(oracle_interpreter, folder, "cpu", dict(os.environ)))
        return started[-1]

    yield begin
    for worker in started:
        worker.close()


def ours(shape: Shape, pairs: list) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of mmjax's own step."""
    params = {
        path: jnp.asarray(value) for path, value in step_time_folder.initial(shape.stage).items()
    }
    state = training_state.create(params, shape.stage, jax.random.key(0))
    step = make_train_step(parameters.abstract(shape.stage.model)[0], shape.stage)
    found = []
    for batch, _ in pairs[:STEPS]:
        state, metrics = step(state, batch)
        found.append((float(metrics.loss.compute()), float(metrics.gradient_norm.compute())))
    losses, norms = zip(*found, strict=True)
    return list(losses), list(norms)


@pytest.mark.parametrize("name", SHAPES)
def test_both_sides_take_the_same_steps(
    name: str, start: Callable[[pathlib.Path], Worker], tmp_path: pathlib.Path
):
    shape = SHAPES[name]
    pairs = step_time_folder.write(shape, tmp_path, count=STEPS)
    worker = start(tmp_path)
    worker.send(do="first", variant="eager", steps=STEPS)
    losses, norms = ours(shape, pairs)
    theirs = worker.receive(120)
    np.testing.assert_allclose(theirs["losses"], losses, rtol=TOLERANCE)
    np.testing.assert_allclose(theirs["norms"], norms, rtol=TOLERANCE)
    assert losses[0] != losses[1], "a step changes something"


def test_a_worker_answers_with_time_and_memory(
    start: Callable[[pathlib.Path], Worker], tmp_path: pathlib.Path
):
    step_time_folder.write(SHAPES["text alone"], tmp_path, count=1)
    worker = start(tmp_path)
    worker.ask(120, do="first", variant="eager", steps=1)
    answer = worker.ask(120, do="run", variant="eager", steps=2)
    assert answer["seconds"] > 0 and answer["memory"] > 2**20
    assert worker.versions is not None and worker.versions.keys() == {
        "torch",
        "transformers",
        "python of torch",
    }


def test_what_pytorch_has_not_is_said(
    start: Callable[[pathlib.Path], Worker], tmp_path: pathlib.Path
):
    gated = dataclasses.replace(DECODER, query_key_norm=True)
    stage = make("odd", model(CLIP, RESAMPLER, gated), TEXT, rows=2, rate=1e-3, trainable=("*",))
    step_time_folder.write(
        Shape("odd", stage, step_time_batches.maker("odd", stage)), tmp_path, count=1
    )
    with pytest.raises(WorkerError, match="query_key_norm"):
        start(tmp_path).ask(120, do="first", variant="eager", steps=1)


def test_numbers_that_nobody_uses_are_an_error(
    start: Callable[[pathlib.Path], Worker], tmp_path: pathlib.Path
):
    step_time_folder.write(SHAPES["MLP on DINOv2"], tmp_path, count=1)
    with np.load(tmp_path / "parameters.npz") as file:
        arrays = dict(file)
    np.savez(
        tmp_path / "parameters.npz",
        **arrays,
        **{"connector/unread/kernel": np.zeros((2, 2), np.float32)},
    )
    with pytest.raises(WorkerError, match="connector/unread/kernel"):
        start(tmp_path).ask(120, do="first", variant="eager", steps=1)


def test_half_precision_trains_float32_copies(
    start: Callable[[pathlib.Path], Worker], tmp_path: pathlib.Path
):
    """Frozen numbers in bfloat16, and steps smaller than bfloat16 can hold are not lost: the loss goes on falling."""
    half = dataclasses.replace(
        SHAPES["low rank beside a frozen decoder"].stage.model, compute_dtype="bfloat16"
    )
    stage = dataclasses.replace(SHAPES["low rank beside a frozen decoder"].stage, model=half)
    shape = Shape("half", stage, step_time_batches.maker("half", stage))
    step_time_folder.write(shape, tmp_path, count=1)
    losses = start(tmp_path).ask(120, do="first", variant="eager", steps=8)["losses"]
    expected, _ = ours(shape, shape.batches(1) * STEPS)
    np.testing.assert_allclose(losses[:STEPS], expected, rtol=2e-2)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "how"), [(2, "compiled whole"), (9, "compiled block by block")])
def test_compiled_steps_are_the_same(
    layers: int, how: str, start: Callable[[pathlib.Path], Worker], tmp_path: pathlib.Path
):
    """Rematerialised with what matrix products give kept, and with updates of low rank: what takes most of the compiler."""
    deep = model(
        CLIP,
        RESAMPLER,
        dataclasses.replace(DECODER, layers=layers),
        remat="dots",
        lora=LoRAConfig(rank=4, alpha=8.0),
    )
    stage = make(
        "compiled",
        deep,
        TEXT,
        rows=2,
        rate=1e-3,
        trainable=("vision/*", "connector/*", "*/lora_a", "*/lora_b"),
    )
    step_time_folder.write(
        Shape("compiled", stage, step_time_batches.maker("compiled", stage)), tmp_path, count=1
    )
    eager, compiled = (
        start(tmp_path).ask(500, do="first", variant=variant, steps=STEPS)
        for variant in ("eager", "compile")
    )
    assert compiled["remark"] == how
    for kind in ("losses", "norms"):
        np.testing.assert_allclose(compiled[kind], eager[kind], rtol=TOLERANCE)
