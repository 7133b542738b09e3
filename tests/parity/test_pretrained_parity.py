"""Published checkpoints of every family, loaded, against what transformers computes with the same files."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.typing import Batch
from mmjax.weights import load_pretrained

FOLDER = pathlib.Path(__file__).parent / "references" / "pretrained"
TOLERANCE = 2e-5  # of the largest value of the reference: float32 sums in another order
MODEL_TYPES = {
    path.parent.name: json.loads(path.read_text())["model_type"]
    for path in sorted(FOLDER.glob("*/config.json"))
}
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "mixtral")
VARIANTS = [name for name in MODEL_TYPES if name.endswith(("_published", "_sharded"))]
CASES = {name: kind for name, kind in MODEL_TYPES.items() if name not in VARIANTS}
TEXT_CASES = [name for name, kind in CASES.items() if kind in DECODERS]
PLAIN_TEXT_CASES = [name for name in TEXT_CASES if name != "llama_dynamic"]
VISION_CASES = [name for name, kind in CASES.items() if kind not in (*DECODERS, "llava")]


@functools.cache
def reference(name):
    with np.load(FOLDER / name / "recorded.npz") as file:
        return dict(file)


VISION_SIZES = [
    (name, key.removeprefix("last:"))
    for name in VISION_CASES
    for key in reference(name)
    if key.startswith("last:")
]


@functools.cache
def loaded(name):
    """A checkpoint as config and parameters."""
    module = load_pretrained(FOLDER / name)
    return module.config, parameters.split(module)[1]


@functools.partial(jax.jit, static_argnums=0)
def compute_logits(config, params, inputs):
    return parameters.abstract(config)[0].merge(params)(inputs)


@functools.partial(jax.jit, static_argnums=0)
def compute_states(config, params, pixels):
    encoder, vision = parameters.abstract(config)[0].merge(params), config.vision
    pooled = encoder.pooled(pixels) if vision.class_token or vision.pooling_head else None
    return (
        jnp.stack(encoder(pixels, layers=tuple(range(vision.layers + 1)))),
        encoder.last(pixels),
        pooled,
    )


def padded(rows):
    """Rows of at most 72 tokens as one array of that length, so that a model is compiled once. No token sees a later one."""
    tokens = np.zeros((len(rows), 72), np.int32)
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = text
    return tokens


def assert_close(computed, recorded):
    computed = np.asarray(computed)
    assert computed.shape == recorded.shape and computed.dtype == np.float32
    assert np.abs(computed - recorded).max() <= TOLERANCE * np.abs(recorded).max()


def test_every_family_is_there():
    vision = {"clip", "clip_vision_model", "siglip", "siglip_vision_model", "dinov2"}
    assert set(CASES.values()) == {*DECODERS, *vision, "llava"}


@pytest.mark.parametrize("name", PLAIN_TEXT_CASES)
def test_logits_and_greedy_generation(name):
    recorded, (config, params) = reference(name), loaded(name)
    first, second = recorded["tokens"]
    text = list(recorded["prompt"][0])
    for step, token in enumerate(recorded["generated"][0]):
        computed = np.asarray(compute_logits(config, params, padded([first, second, text])))
        if step == 0:
            assert_close(computed[:2, : len(first)], recorded["logits"])
        assert computed[2, len(text) - 1].argmax() == token, (
            f"token {step}, where transformers leads by {recorded['gaps'][0, step]:.1e} of the largest"
        )
        text.append(token)
    assert len(text) == 72 and recorded["gaps"].min() > TOLERANCE


@pytest.mark.parametrize("length", [24, 48, 72])
def test_frequencies_that_depend_on_the_length_of_the_text(length):
    recorded = reference("llama_dynamic")
    assert_close(
        compute_logits(*loaded("llama_dynamic"), jnp.asarray(recorded["tokens"][:, :length])),
        recorded[f"logits:{length}"],
    )


@pytest.mark.parametrize(("name", "size"), VISION_SIZES)
def test_hidden_states(name, size):
    recorded = reference(name)
    hidden, last, pooled = compute_states(*loaded(name), recorded[f"pixels:{size}"])
    assert_close(hidden, recorded[f"hidden:{size}"])
    assert_close(last, recorded[f"last:{size}"])
    if f"pooled:{size}" in recorded:
        assert_close(pooled, recorded[f"pooled:{size}"])
    else:
        assert pooled is None


@pytest.mark.parametrize("name", ["clip_vision", "siglip_vision", "dinov2"])
def test_bytes_of_images_are_normalised_as_the_family_does(name):
    recorded = reference(name)
    assert_close(compute_states(*loaded(name), recorded["images:own"])[1], recorded["last:own"])


@pytest.mark.parametrize("images", [1, 2])
def test_llava(images):
    recorded, (config, params) = reference("llava"), loaded("llava")
    batch = llava_batch(recorded[f"tokens:{images}"], recorded["images"][None, :images])
    assert_close(compute_logits(config, params, batch), recorded[f"logits:{images}"])


def llava_batch(tokens, images):
    """One row of text with its images where the image token stands."""
    place = (
        tokens == json.loads((FOLDER / "llava" / "config.json").read_text())["image_token_index"]
    )
    ones = np.ones(tokens.shape, np.int32)
    return Batch(
        tokens=tokens.astype(np.int32),
        targets=-ones,
        segment_ids=ones,
        prefix_segment_ids=0 * ones,
        positions=np.arange(tokens.shape[1], dtype=np.int32)[None],
        images=images,
        image_mask=np.ones(images.shape[:2], bool),
        visual_embedding_index=np.where(place, place.cumsum(axis=1) - 1, -1).astype(np.int32),
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_another_way_to_write_a_checkpoint_gives_the_same_model(name):
    (config, params), (other, others) = loaded(name.rpartition("_")[0]), loaded(name)
    assert other == config and others.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(others[path], value, err_msg=path)


@pytest.mark.parametrize(
    "names",
    [
        ("llama_yarn", "llama_yarn_settings"),
        ("mixtral", "mixtral_window"),
        ("qwen2_untied", "qwen2_tied"),
        ("qwen2_tied", "qwen2_window"),
    ],
)
def test_the_settings_matter(names):
    """Else one that is not obeyed would pass."""
    first, second = (reference(name)["logits"] for name in names)
    assert np.abs(first - second).max() > 100 * TOLERANCE * np.abs(first).max()
