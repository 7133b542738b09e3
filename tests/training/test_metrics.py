import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.training.logging import Counts, Window
from mmjax.training.metrics import Chrono, TokenSums, merge, step_metrics, summary


def of_step(loss, targets, correct, norm=1.0, rate=0.1):
    sums = TokenSums(jnp.float32(loss), jnp.int32(targets), jnp.int32(correct))
    return step_metrics(sums, {"decoder": jnp.float32(norm)}, jnp.float32(norm), jnp.float32(rate))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10**6)), min_size=1, max_size=6))
def test_merged_steps_are_the_mean_over_all_tokens(steps):
    total, losses, hits, norms = None, [], [], []
    for count, seed in steps:
        random = np.random.default_rng(seed)
        loss, hit, norm = (
            random.uniform(0, 3, count),
            random.random(count) < 0.5,
            float(random.uniform(0, 9)),
        )
        found = of_step(loss.sum(), count, hit.sum(), norm)
        total = found if total is None else merge(total, found)
        losses.append(loss)
        hits.append(hit)
        norms.append(norm)
    mean = np.concatenate(losses).mean()
    assert summary(total) == pytest.approx(
        {
            "loss": mean,
            "perplexity": np.exp(mean),
            "token_accuracy": np.concatenate(hits).mean(),
            "gradient_norm": np.mean(norms),
            "gradient_norm/decoder": norms[-1],
            "learning_rate": 0.1,
            "nonfinite_steps": 0,
        },
        rel=1e-4,
    )


def test_the_newest_learning_rate_stands():
    assert (
        summary(merge(of_step(1, 1, 1, rate=0.5), of_step(1, 1, 1, rate=0.25)))["learning_rate"]
        == 0.25
    )


@pytest.mark.parametrize(
    "loss, norm, cause",
    [
        (np.nan, 1.0, "loss"),
        (np.inf, np.nan, "loss"),
        (2.0, np.inf, "gradient"),
        (2.0, np.nan, "gradient"),
    ],
)
def test_a_step_that_is_not_finite_is_counted_and_left_out(loss, norm, cause):
    total = merge(
        merge(of_step(6, 3, 1, norm=2.0), of_step(loss, 5, 4, norm)), of_step(2, 1, 1, norm=4.0)
    )
    found = summary(total)
    assert (
        found["loss"],
        found["token_accuracy"],
        found["gradient_norm"],
        found["nonfinite_steps"],
    ) == (2.0, 0.5, 3.0, 1)
    assert {
        "loss": int(total.nonfinite_steps.loss),
        "gradient": int(total.nonfinite_steps.gradient),
    } == {"loss": int(cause == "loss"), "gradient": int(cause == "gradient")}


def test_the_modules_norm_shows_the_step_that_is_not_finite():
    assert np.isnan(summary(of_step(1, 1, 1, norm=np.nan))["gradient_norm/decoder"])


def test_an_open_window_goes_on_from_what_a_checkpoint_holds():
    whole = Window(Chrono())
    whole.add(of_step(6, 3, 1, norm=2.0), Counts(1))
    saved = json.loads(json.dumps(whole.state()))
    assert saved == pytest.approx([6, 3, 1, 3, 6, 3, 2, 1, 2, 0.1, 0, 0])  # totals and counts alone
    resumed = Window(Chrono(), saved)
    for window in (whole, resumed):
        window.add(of_step(2, 1, 1, norm=4.0), Counts(1))
    assert resumed.state() == whole.state()
    assert resumed.summary() == whole.summary()


def test_merging_needs_no_transfer():
    with jax.transfer_guard("disallow"):
        left, right = jax.jit(lambda: (of_step(1, 1, 1), of_step(2, 1, 0)))()
        merged = merge(left, right)
    assert summary(merged)["loss"] == 1.5
