"""What two recipes save by mmjax's own count of FLOPs, beside the closed form, which ignores the encoder."""

import dataclasses

import pytest

from mmjax.ledger import Costs, StageCost, predicted_saving, saving
from mmjax.models import presets
from mmjax.models.config import DecoderConfig, VLMConfig
from mmjax.models.connectors.mlp import MLPConfig
from mmjax.recipe.recipe import DataConfig, OptimizerConfig, Stage
from mmjax.training.flops import step_flops

TEXT, LAST = 0.43, 0.2
CONNECTOR = ("connector/*", "vision/final_norm*")
ENCODER = (*CONNECTOR, "vision/separate_last_layers/*")
LLAMA_3B = DecoderConfig(128_256, 3072, 28, 24, 8, 128, 8192, tie_word_embeddings=True)
LLAMA_70B = DecoderConfig(128_256, 8192, 80, 64, 8, 128, 28_672)


@dataclasses.dataclass
class Counted:
    saving: float
    encoder: float  # share of the encoder stage


def count(decoder: DecoderConfig, replaced: tuple[int, int]) -> Counted:
    """The baseline's two stages and the three of grafting (arXiv:2505.22664), a row a step."""
    vision = dataclasses.replace(presets.clip_vit_l14(336), final_norm=True, separate_last_layers=8)
    connector = MLPConfig(
        "mlp", (24,), decoder.width, class_token=True, final_norm=True, image_boundary_tokens=True
    )
    whole = VLMConfig(vision, connector, decoder)
    surrogate = dataclasses.replace(
        whole, decoder=dataclasses.replace(decoder, replaced_layers=(replaced,))
    )

    def stage(
        name: str, model: VLMConfig, trainable: tuple[str, ...], rows: float
    ) -> tuple[StageCost, float]:
        flops = step_flops(
            model,
            Stage(
                name, model, DataConfig({}, 128), OptimizerConfig(1e-4), 1, 1, trainable=trainable
            ),
        )
        return StageCost(name, flops=rows * flops.total), flops.parts["vision"].total / flops.total

    finetune = (*ENCODER, "decoder/*")
    ours = [
        stage("translators", surrogate, (*CONNECTOR, "decoder/translators/*"), 1 + TEXT),
        stage("encoder", surrogate, ENCODER, 1),
        stage("finetune", whole, finetune, LAST),
    ]
    baseline = [stage("pretrain", whole, CONNECTOR, 1), stage("finetune", whole, finetune, 1)]
    one, other = (
        Costs(name, tuple(cost for cost, _ in stages))
        for name, stages in (("ours", ours), ("baseline", baseline))
    )
    return Counted(saving(one, other).flops, ours[1][1])


@pytest.mark.parametrize(
    ("decoder", "replaced", "saved", "encoder"),
    [
        (LLAMA_70B, (40, 79), 36.2, 0.6),
        (presets.llama3_8b(), (17, 31), 27.4, 4.9),
        (LLAMA_3B, (16, 27), 20.8, 10.3),
        (presets.smollm2_135m(), (16, 24), -10.8, 68.9),
    ],
    ids=["70B", "8B", "3B", "135M"],
)
def test_small_decoders_save_less(decoder, replaced, saved, encoder):
    """docs/surrogates.md shows these numbers."""
    found = count(decoder, replaced)
    assert (round(100 * found.saving, 1), round(100 * found.encoder, 1)) == (saved, encoder)


def test_a_large_decoder_is_what_the_closed_form_knows():
    assert count(LLAMA_70B, (40, 79)).saving == pytest.approx(
        predicted_saving(0.539, TEXT, LAST), abs=0.01
    )
