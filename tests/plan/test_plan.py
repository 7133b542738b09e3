"""Numbers of a plan: those that the paper prints, those on file, and what a topology changes."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from mmjax.base import devices
from mmjax.data.text import vocabulary
from mmjax.errors import InputError
from mmjax.plan import plan, table
from mmjax.plan.topology import Topology
from mmjax.recipe.recipe import MeshConfig
from tests.golden import update as golden


@pytest.fixture(scope="module")
def cos_7b():
    return golden.recipe("7b")


@pytest.fixture(scope="module")
def small():
    return vocabulary.filled(golden.recipe(""), golden.VOCABULARY)


def test_the_published_numbers_of_cos_7b(cos_7b):
    """532 M trained parameters (paper, table of final models), and its parts."""
    pretrain, finetune = plan.make_plan(cos_7b)
    assert round(sum(finetune.trained.values()) / 1e6, 2) == 532.37
    assert {part: round(count / 1e6, 2) for part, count in finetune.trained.items()} == {
        "vision": 291.37,
        "connector": 81.10,
        "decoder": 0,
        "lora": 159.91,
    }
    assert round(pretrain.trained["connector"] / 1e6, 2) == 54.66
    assert (pretrain.stage.model.visual_tokens, finetune.stage.model.visual_tokens) == (80, 1296)


# Of each kind of variant one or two; with the slow tests all of them.
FAST = ("", "7b", "cos80-336", "captions", "graft:8b", "graft:8b-cos", "graft:70b-lora")


@pytest.mark.parametrize(
    "variant",
    [
        variant if variant in FAST else pytest.param(variant, marks=pytest.mark.slow)
        for variant in (*golden.VARIANTS, *golden.GRAFTED)
    ],
)
def test_variants_are_the_golden_ones(variant):
    expected = json.loads((golden.GOLDEN / "variants.json").read_text())
    assert golden.summary(variant) == expected[variant], (
        "python tests/golden/update.py writes it anew"
    )


@pytest.mark.parametrize(
    "variant", [variant for variant in golden.VARIANTS if variant.startswith("cos")]
)
def test_a_token_setting_has_the_tokens_of_its_name(variant):
    few, many = variant.removeprefix("cos").removesuffix("-224px").split("-")
    stages = golden.recipe(variant).stages
    assert (stages["pretrain"].model.visual_tokens, stages["finetune"].model.visual_tokens) == (
        int(few),
        int(many),
    )
    assert stages["finetune"].model.vision.image_size == (224 if variant.endswith("224px") else 448)


def test_memory_is_counted_in_the_dtypes_of_the_state(cos_7b):
    _, finetune = plan.make_plan(cos_7b)
    trained, everything = sum(finetune.trained.values()), sum(finetune.parameters.values())
    assert finetune.memory.gradients == 4 * trained
    assert finetune.memory.optimizer == 8 * trained
    frozen = finetune.memory.parameters - 4 * trained
    assert frozen == pytest.approx(2 * (everything - trained), rel=1e-3)  # bfloat16, norms aside


def test_sharding_divides_the_state_and_the_rows(cos_7b):
    alone = plan.make_plan(cos_7b)[1].memory
    eight = plan.make_plan(cos_7b, Topology.parse("h100:8"))[1].memory
    # Half of LoRA's small matrices have no axis to split.
    assert alone.optimizer / 8 < eight.optimizer < alone.optimizer / 3
    assert eight.activations == pytest.approx(alone.activations / 8)
    replicated = dataclasses.replace(cos_7b, mesh=MeshConfig())
    assert (
        plan.make_plan(replicated, Topology.parse("h100:8"))[1].memory.optimizer == alone.optimizer
    )


def test_the_share_compares_with_the_model_of_the_last_stage(small):
    pretrain, finetune = plan.make_plan(small)
    assert finetune.share == 1.0
    full = dataclasses.replace(pretrain.stage, model=finetune.stage.model)
    alone = plan.make_plan(dataclasses.replace(small, stages={"pretrain": full}))[0]
    assert pretrain.share == pytest.approx(pretrain.flops.row.total / alone.flops.row.total)
    assert 0.1 < pretrain.share < 0.5


def test_remat_and_gradient_accumulation_steps_shrink_activations(small):
    stage = small.stages["finetune"]

    def activations(**model) -> float:
        return plan.activation_bytes(
            dataclasses.replace(stage, model=dataclasses.replace(stage.model, **model))
        )

    assert activations(remat="none") > activations(remat="dots") > activations(remat="full")
    assert activations(compute_dtype="bfloat16") < activations(compute_dtype="float32")
    halved = dataclasses.replace(stage, gradient_accumulation_steps=2)
    one, two = (
        plan.make_plan(dataclasses.replace(small, stages={"finetune": s}))[0].memory.activations
        for s in (stage, halved)
    )
    assert two == one / 2


def test_a_frozen_encoder_keeps_nothing_for_the_backward_pass(small):
    stage = small.stages["finetune"]
    frozen = dataclasses.replace(stage, trainable=("connector/*", "decoder/*"))
    assert plan.activation_bytes(frozen) < plan.activation_bytes(stage)


def test_the_table_shows_every_stage(cos_7b):
    text = _shown(cos_7b, "h200:8")
    for word in (
        "pretrain",
        "finetune",
        "1,296",
        "532.37 M",
        "beside the last stage's model",
        "seconds per step",
    ):
        assert word in text


def test_what_cannot_fit_is_refused_after_the_table(cos_7b):
    replicated = dataclasses.replace(cos_7b, mesh=MeshConfig(data=-1, fsdp=1))
    with pytest.raises(
        InputError, match=r"Stage 'pretrain' needs about .*gradient_accumulation_steps"
    ):
        _shown(replicated, "v5e:4x4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10:8", "Did you mean h100"),
        ("h100", "number of devices"),
        ("h100:0", "number of devices"),
        ("v5p:4x4xz", "number of devices"),
        ("b20:8", "Did you mean b200"),
        ("rtx409:1", "Did you mean rtx4090"),
    ],
)
def test_a_wrong_topology_is_named(text, message):
    with pytest.raises(InputError, match=message):
        Topology.parse(text)


def test_topologies():
    assert Topology.parse("v5p:4x4x4").count == 64
    assert Topology.parse("H100:8").device.memory == 80e9


@pytest.mark.parametrize(
    ("text", "memory", "flops"),
    [
        ("b200:8", 180e9, 2250e12),
        ("gb200:72", 186e9, 2500e12),
        ("l40s:4", 48e9, 362.05e12),
        ("rtx4090:2", 24e9, 165.2e12),
        ("RTX 4090:2", 24e9, 165.2e12),
        ("h100_pcie:1", 80e9, 756e12),
        ("v4:2x2x4", 32 * 2**30, 275e12),
    ],
)
def test_a_device_has_the_numbers_of_its_data_sheet(text, memory, flops):
    device = plan.Topology.parse(text).device
    assert (device.memory, device.flops) == (memory, flops)


def test_each_device_is_found_by_its_own_kind():
    """What jax calls a device, made from the patterns themselves, leads back to its entry and to no other."""
    kinds = {name: f"NVIDIA {name.upper()}" for name in ("h100", "h200", "gb200", "b200", "l40s")}
    kinds |= {"a100": "NVIDIA A100-SXM4-80GB", "a100-40gb": "NVIDIA A100-SXM4-40GB"}
    kinds |= {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
    for name, kind in kinds.items():
        assert devices.of_kind(kind) is devices.DEVICES[name], kind


def test_the_hours_of_the_whole_recipe_are_those_of_its_stages(cos_7b):
    plans = plan.make_plan(cos_7b)
    hours = [
        entry.flops.total * entry.stage.steps / (989e12 * plan.ASSUMED_UTILISATION) / 3600
        for entry in plans
    ]
    text = _shown(cos_7b, "h100:8")
    total = sum(hours)
    assert f"{total:.3g} device-hours, which are {total / 8:.3g} hours on 8 x h100" in text
    (line,) = (line for line in text.splitlines() if "device-hours" in line and "which" not in line)
    assert [float(cell.replace(",", "")) for cell in line.split("│")[2:4]] == [
        pytest.approx(value, rel=1e-2) for value in hours
    ]
    assert "device-hours" not in _shown(cos_7b, None)


def test_a_mesh_that_does_not_fit_the_topology_is_refused(cos_7b):
    with pytest.raises(InputError, match="batch_size 256 must be divisible by 7"):
        plan.make_plan(cos_7b, Topology.parse("h100:7"))


def test_what_a_recipe_saves_against_another(small):
    """Half of the steps of the last stage, of a baseline with half of those of the first."""
    ours, other = (
        _with_steps(small, pretrain=1500, finetune=250),
        _with_steps(small, pretrain=750, finetune=500),
    )
    pretrain, finetune = (entry.flops.total for entry in plan.make_plan(small))
    text = _shown(ours, None, other)
    whole, earlier = (line.split()[-2] for line in text.splitlines()[-3:-1])
    assert (
        whole
        == f"{100 * (1 - (1500 * pretrain + 250 * finetune) / (750 * pretrain + 500 * finetune)):.1f}"
    )
    assert earlier == "-100.0"
    assert (
        text.index("beside the last stage's model") < text.index("baseline")
        and "device time" not in text
    )


def test_a_topology_adds_device_time(cos_7b):
    plans, topology = plan.make_plan(cos_7b), Topology.parse("h100:8")
    costs = table.costs(cos_7b, plans, topology)
    assert costs.hardware == "8 x h100" and costs.total("seconds") is None
    expected = plans[0].flops.total * plans[0].stage.steps / (989e12 * plan.ASSUMED_UTILISATION)
    assert costs.stages[0].device_seconds == pytest.approx(expected)
    text = _shown(cos_7b, "h100:8", cos_7b)
    assert "8 x h100" in text and "40% utilisation of every stage" in text
    assert text.split("saving")[1].split("before the last stage")[0].count(" 0.0 %") == 2, (
        "of device time and of FLOPs"
    )


def test_a_baseline_that_cannot_fit_is_noted_and_no_error(cos_7b):
    replicated = dataclasses.replace(cos_7b, mesh=MeshConfig(data=-1, fsdp=1))
    assert "Of cos:7b, too large for these devices as it stands: finetune." in _shown(
        cos_7b, "v6e:4x4", replicated
    )


def test_the_comparison_is_printed_before_what_does_not_fit_is_refused(cos_7b):
    out, replicated = io.StringIO(), dataclasses.replace(cos_7b, mesh=MeshConfig(data=-1, fsdp=1))
    with pytest.raises(InputError, match="Stage 'pretrain' needs about"):
        table.run(replicated, "v5e:4x4", cos_7b, Console(file=out, width=120))
    assert "saving" in out.getvalue()


def test_a_baseline_that_cannot_be_laid_out_is_named(cos_7b):
    odd = dataclasses.replace(cos_7b, name="odd", mesh=MeshConfig(tensor=3))
    with pytest.raises(InputError, match="--against: odd:7b: mesh: "):
        _shown(cos_7b, "h100:8", odd)


def _with_steps(recipe, **steps: int):
    stages = {
        name: dataclasses.replace(stage, steps=steps[name]) for name, stage in recipe.stages.items()
    }
    return dataclasses.replace(recipe, stages=stages)


def _shown(recipe, topology: str | None, against=None) -> str:
    out = io.StringIO()
    table.run(recipe, topology, against, Console(file=out, width=120))
    return out.getvalue()
