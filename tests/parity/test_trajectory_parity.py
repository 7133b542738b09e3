"""What each layer predicts, and how far that is from the end, against transformers' output_hidden_states."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import parameters
from mmjax.models.config import DecoderConfig, LanguageModelConfig
from mmjax.trajectory.lens import Lens, divergences

CONFIG = LanguageModelConfig(
    DecoderConfig(
        vocabulary=40, width=24, layers=6, heads=4, kv_heads=2, head_dim=16, mlp_width=32
    ),
    "float32",
)


@pytest.mark.parametrize("measure", ["positions", "vocabulary"])
def test_divergences(measure, reference, translated, close):
    theirs = reference("trajectory")
    params = {
        path: jnp.asarray(value) for path, value in translated(theirs, "weight", "decoder/").items()
    }
    lens = Lens(parameters.abstract(CONFIG)[0], params, measure, theirs["tokens"].shape[1])
    ours = np.stack([divergences(lens.read(tokens), measure) for tokens in theirs["tokens"]])
    assert theirs[measure].shape == (3, 6)
    assert theirs[measure][:, :-1].min() > 0.02
    close(ours, theirs[measure])
