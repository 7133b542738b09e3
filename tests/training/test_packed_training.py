"""The step on rows as the loader makes them: images, captions, questions and text alone, mixed."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.data.loader import batches
from mmjax.data.packing.rows import make_rows
from mmjax.data.sources.easy_vqa import EasyVqaSource
from mmjax.data.sources.llava import LlavaSource
from mmjax.data.text.templates import TEMPLATES
from mmjax.data.text.tokenizer import WordTokenizer
from mmjax.data.text.vocabulary import MULTIPLE
from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, ViTConfig, VLMConfig
from mmjax.models.connectors.resampler import ResamplerConfig
from mmjax.recipe.recipe import DataConfig, OptimizerConfig, Stage
from mmjax.training.state import create
from mmjax.training.step import make_train_step

ROWS = 4
COMPARED = 3
SOURCE = EasyVqaSource("easy_vqa", tasks=("caption", "question"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(rows, stage) of 50 images with captions and questions, and of conversations without any image."""
    path = tmp_path_factory.mktemp("text") / "talk.json"
    turns = (
        '[{"from": "human", "value": "is a red shape present?"}, {"from": "gpt", "value": "no"}]'
    )
    path.write_text(
        f"[{', '.join(f'''{{"id": "{number}", "conversations": {turns}}}''' for number in range(20))}]"
    )
    data = DataConfig(
        {"images": SOURCE, "talk": LlavaSource("llava", str(path), str(path.parent), weight=0.4)},
        text_length=48,
        flip=True,
    )
    data = dataclasses.replace(data, holdout=5)
    tokenizer = WordTokenizer.build(SOURCE.open(TEMPLATES["plain"], holdout=3950).texts())
    model = VLMConfig(
        vision=ViTConfig(16, 4, 16, 1, 2, 16, norm="rms", class_token=False, embedding_norm=False),
        connector=ResamplerConfig(
            "resampler", (4, 2), (1, 4), (1,), width=16, head_dim=8, mlp_width=16, norm="rms"
        ),
        decoder=DecoderConfig(-(-tokenizer.vocabulary // MULTIPLE) * MULTIPLE, 16, 1, 2, 1, 8, 16),
        compute_dtype="float32",
    )
    stage = Stage("mixed", model, data, OptimizerConfig(1e-2), steps=30, batch_size=ROWS)
    return make_rows(data, model, tokenizer, seed=0), stage


def train(rows, stage, steps):
    """Losses, numbers of images in a batch, how many programs were compiled, and the trained parameters after COMPARED steps."""
    model_def, _ = parameters.abstract(stage.model)
    state = create(parameters.initialize(stage.model, jax.random.key(0)), stage, jax.random.key(1))
    traces: list[None] = []
    step = make_train_step(model_def, stage, on_trace=lambda: traces.append(None))
    losses, kinds, params = [], set(), {}
    with batches(rows, stage.batch_size, 0, 0) as data:
        for number in range(1, steps + 1):
            batch, _ = next(data)
            state, metrics = step(state, batch)
            losses.append(float(metrics.loss.compute()))
            kinds.add(int(batch.image_mask.sum()))
            if number == COMPARED:
                params = {path: np.array(value) for path, value in state.trainable.items()}
    return losses, kinds, len(traces), params


@pytest.fixture(scope="module")
def trained(mixed):
    return train(*mixed, 20)


def test_twenty_varied_batches_are_one_compilation_and_are_learned(trained):
    losses, images_per_batch, compilations, _ = trained
    assert compilations == 1
    assert len(images_per_batch) > 1, "the batches should differ in how many rows are text alone"
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.slow
def test_gradient_accumulation_steps_of_real_rows_change_nothing(mixed, trained):
    (rows, stage), (losses, _, _, whole) = mixed, trained
    split = dataclasses.replace(stage, gradient_accumulation_steps=4)
    split_losses, _, _, parts = train(rows, split, COMPARED)
    np.testing.assert_allclose(split_losses, losses[:COMPARED], rtol=1e-5)
    for path, value in whole.items():
        np.testing.assert_allclose(parts[path], value, atol=2e-4, err_msg=path)
