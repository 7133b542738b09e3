"""Five updates of the optimizer against torch's AdamW, with clipping, a cosine and parameter groups."""

import jax
import jax.numpy as jnp

from mmjax.recipe.recipe import OptimizerConfig, ParameterGroup
from mmjax.training.state import Optimizer, global_norm, squared_norms

STEPS = 5
CONFIG = OptimizerConfig(
    learning_rate=0.01,
    final_scale=0.1,
    beta2=0.95,
    epsilon=1e-6,
    weight_decay=0.1,
    clip_norm=1.0,
    groups=(ParameterGroup("vision/*", learning_rate_scale=0.25, weight_decay=0.3),),
)


def test_updates(reference, close):
    theirs = reference("adamw")
    optimizer = Optimizer(CONFIG, STEPS)
    params = {
        path: jnp.asarray(theirs[f"0/{path}"])
        for path in ("decoder/lm_head/kernel", "vision/patch/kernel", "decoder/norm/scale")
    }
    state = optimizer.init(params)

    update = jax.jit(optimizer.update)
    clipped = 0
    for step in range(STEPS):
        gradient = {path: jnp.asarray(theirs[f"{step}/gradient:{path}"]) for path in params}
        clipped += float(global_norm(squared_norms(gradient).values())) > CONFIG.clip_norm
        params, state = update(gradient, state, params, jnp.int32(step))
        for path, value in params.items():
            close(value, theirs[f"{step + 1}/{path}"], f"{path} after {step + 1} updates")
    assert 0 < clipped < STEPS, "some gradients are clipped and some are not"
