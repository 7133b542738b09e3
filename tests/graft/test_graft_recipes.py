"""configs/graft.py against the published facts (arXiv:2505.22664 and its official code): sizes, what is trained, learning rates, tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mmjax import main
from mmjax.config import load as config
from mmjax.distributed import mesh
from mmjax.models import parameters
from mmjax.recipe.recipe import MeshConfig, OptimizerConfig
from mmjax.training.flops import step_flops
from mmjax.training.state import Optimizer, abstract_state, make_optimizer
from tests.test_architecture import ROOT

FILE = str(ROOT / "configs" / "graft.py")


def load(variant: str):
    return config.load(f"{FILE}:{variant}", partial=True)


def count(stage, *, part: str = "", trained: bool = False) -> float:
    """Parameters in millions."""
    shapes = parameters.abstract(stage.model)[1]
    globs = stage.trainable if trained else ("*",)
    return (
        parameters.count(
            {p: s for p, s in shapes.items() if p.startswith(part) and parameters.matches(p, globs)}
        )
        / 1e6
    )


@pytest.mark.parametrize(
    ("variant", "whole", "surrogate", "first", "second"),
    [
        ("3b", 3212.75, 2206.06, 113.3, 113.4),
        ("8b", 8030.26, 5194.81, 239.1, 121.8),
        ("70b", 70553.71, 38038.84, 931.2, 176.3),
    ],
)
def test_sizes_of_decoders_and_of_what_is_trained(variant, whole, surrogate, first, second):
    translator, encoder, decoder = load(variant).stages.values()
    assert count(decoder, part="decoder/") == pytest.approx(whole, abs=0.01)
    assert (
        count(translator, part="decoder/")
        == count(encoder, part="decoder/")
        == pytest.approx(surrogate, abs=0.01)
    )
    assert count(translator, trained=True) == pytest.approx(first, abs=0.05)
    assert count(encoder, trained=True) == pytest.approx(second, abs=0.05)


@pytest.mark.parametrize(
    ("variant", "replaced"),
    [("3b", (16, 27)), ("8b", (17, 31)), ("70b", (40, 79)), ("qwen3_4b", (22, 35))],
)
def test_what_is_replaced(variant, replaced):
    translator, _, decoder = load(variant).stages.values()
    assert (
        translator.model.decoder.replaced_layers == (replaced,)
        and decoder.model.decoder.replaced_layers == ()
    )
    assert (
        translator.model.decoder.depth == {"3b": 18, "8b": 19, "70b": 42, "qwen3_4b": 24}[variant]
    )


def test_an_image_is_577_tokens_between_two_learned_vectors():
    assert {stage.model.visual_tokens for stage in load("8b").stages.values()} == {579}


# Of a fixed run of torch's recursive cosine; counted from the first update.
@pytest.mark.parametrize(
    ("stage", "rates"),
    [
        (
            "translator",
            {1: 7.5188e-07, 133: 1e-4, 134: 9.9997e-05, 500: 9.7048e-05, 2440: 4.1397e-05},
        ),
        ("encoder", {1: 3.3784e-07, 148: 5e-5, 500: 4.8823e-05, 2440: 2.5041e-05, 4879: 0.0}),
    ],
)
def test_learning_rates_of_the_official_schedule(stage, rates):
    found = load("8b").stages[stage]
    assert found.steps == {"translator": 4393, "encoder": 4880}[stage]
    for update, rate in rates.items():
        assert float(make_optimizer(found).learning_rate(update - 1)) == pytest.approx(
            rate, rel=2e-5, abs=1e-12
        )


@pytest.mark.parametrize("steps", range(1, 7))
def test_every_rate_is_finite(steps):
    for warmup in range(steps + 1):
        optimizer = Optimizer(
            OptimizerConfig(1e-3, schedule="cosine_over_all", warmup_steps=warmup), steps
        )
        assert all(
            0 <= float(optimizer.learning_rate(step)) <= 1.001e-3 for step in range(steps)
        ), (steps, warmup)


def test_texts_are_mixed_in_as_many_as_the_paper_has():
    weights = {
        name: source.weight for name, source in load("8b").stages["translator"].data.sources.items()
    }
    assert weights == {"conversations": 624_610, "text": 500_000}


def test_few_tokens_on_a_surrogate_save_four_fifths_of_the_stages_that_train_the_encoder():
    """At 70B shapes with 200 text tokens, against the same stages with 579 tokens on the whole model."""

    def flops(variant: str) -> float:
        stages = [load(variant).stages[name] for name in ("translator", "encoder")]
        stages = [
            dataclasses.replace(stage, data=dataclasses.replace(stage.data, text_length=200))
            for stage in stages
        ]
        return sum(step_flops(stage.model, stage).total * stage.steps for stage in stages)

    assert 1 - flops("70b-cos") / flops("70b-whole") == pytest.approx(0.80, abs=0.02)


def test_the_last_stage_alone_begins_with_all_of_what_was_grafted():
    (stage,) = load("after").stages.values()
    # A part named beside it would take precedence.
    assert set(stage.init_from) == {"model"} and stage.transitions == ()


def test_a_published_encoder_learns_more_slowly_than_what_is_new():
    for variant in ("", "full", "lora", "random", "early", "whole", "cos", "after"):
        for stage in load(variant).stages.values():
            rates = {
                group.match: group.learning_rate_scale * stage.optimizer.learning_rate
                for group in stage.optimizer.groups
            }
            if any(
                parameters.matches("vision/separate_last_layers/layers/mlp/up/kernel", (glob,))
                for glob in stage.trainable
            ):
                assert rates == {
                    "vision/*": pytest.approx(
                        5e-5 if variant != "whole" or stage.name == "decoder" else 2e-4
                    )
                }, (variant, stage.name)


@pytest.mark.parametrize("variant", ["8b", "qwen3_4b"])
def test_the_stages_on_the_surrogate_learn_the_special_tokens_of_their_template(variant):
    stages = load(variant).stages
    assert [stage.data.train_on_special_tokens for stage in stages.values()] == [
        variant == "8b",
        variant == "8b",
        False,
    ]


def test_the_frozen_decoder_is_bfloat16_and_has_no_optimizer_state():
    stage = load("8b").stages["encoder"]
    state = abstract_state(
        stage, mesh.make_mesh(MeshConfig(), jax.devices()[:1]), jax.random.key(0)
    )
    frozen = {path: leaf for path, leaf in state.frozen.items() if path.startswith("decoder/")}
    assert sum(leaf.size for leaf in frozen.values()) / 1e6 == pytest.approx(5194.81, abs=0.01)
    assert {leaf.dtype for path, leaf in frozen.items() if not path.endswith("/scale")} == {
        jnp.dtype("bfloat16")
    }
    assert not any(
        path.startswith("decoder/")
        for tree in (state.trainable, state.optimizer.mu, state.optimizer.nu)
        for path in tree
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--config.stages.translator.model.decoder.replaced_layers=((16,31),)", "must be ranges"),
        ("--config.stages.encoder.model.decoder.replaced_layers=()", "'graft'"),
        (
            "--config.stages.translator.model.decoder.replaced_layers=()",
            "trainable must match parameters, and 'decoder/translators/*' does not",
        ),
    ],
    ids=[
        "a cut outside of the model",
        "a surrogate that becomes whole too early",
        "a missing translator",
    ],
)
def test_what_is_wrong_with_a_surrogate_ends_the_command_with_2(setting, message, capsys):
    assert main.main(["mmjax", f"--config={FILE}", setting, "--mode=plan"]) == 2
    assert message in capsys.readouterr().err
