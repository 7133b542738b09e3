"""What a stage would have cost with the visual tokens of the last one: the yardstick of token scaling."""

import math

from mmjax import recipe_json, vocabulary
from mmjax.data.tokenizer import WordTokenizer
from mmjax.recipe import Recipe
from mmjax.report.reading import Run
from mmjax.training.flops import step_flops


def shares_of_last_model(run: Run) -> dict[str, float]:
    """FLOPs of a step of each stage over those of the same step (same rows, same text) on the model of the last stage.

    Raises:
        InputError: the config is missing or of another version, or its tokenizer is missing.
    """
    recipe = _recipe(run)
    last = list(recipe.stages.values())[-1].model
    return {name: step_flops(stage.model, stage).total / step_flops(last, stage).total for name, stage in recipe.stages.items()}


def last_model(run: Run) -> str:
    """The model of the last stage as the yardstick: "84 visual tokens of a 64-pixel picture"."""
    model = list(_recipe(run).stages.values())[-1].model
    per_side = math.isqrt(model.vision.patches)
    return f"{model.visual_tokens:,} visual tokens of a picture of {model.vision.image_size} pixels ({per_side} x {per_side} patches)"


def _recipe(run: Run) -> Recipe:
    recipe = recipe_json.from_json(run.config)
    if recipe.tokenizer.kind == "words" and any(not stage.model.decoder.vocabulary for stage in recipe.stages.values()):
        recipe = vocabulary.fit(recipe, WordTokenizer.load(run.path / "tokenizer.json"))
    return recipe
