"""Writes the golden files anew: `python tests/golden/update.py`. Read the difference before you keep it.

recipes/VARIANT.json holds a resolved recipe of configs/cos.py (or, as graft-VARIANT.json, of configs/graft.py), every default written out;
variants.json what tells the variants apart.
"""

import json
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from mmjax.config.load import load, read_config  # noqa: E402
from mmjax.data.text import vocabulary  # noqa: E402
from mmjax.plan import plan  # noqa: E402
from mmjax.recipe.recipe import Recipe  # noqa: E402
from mmjax.recipe.serialization import to_json  # noqa: E402

CONFIG = str(ROOT / "configs" / "cos.py")
WHOLE = (
    "",
    "smollm2",
    "7b",
    "8b",
    "resampler336",
    "linear256",
    "graft:",
    "graft:8b",
    "graft:70b-cos",
)
VARIANTS = (
    *(
        "",
        "few",
        "many",
        "single",
        "single-few",
        "scratch",
        "captions",
        "7b",
        "8b",
        "resampler336",
        "resampler80",
        "linear256",
        "smollm2",
        "smollm2-stamps",
    ),
    *(
        "cos80-1296",
        "cos80-1104",
        "cos80-528",
        "cos48-784",
        "cos32-528",
        "cos80-336",
        "cos32-336",
        "cos80-336-224px",
    ),
    *("cos80-80", "cos80-80-224px", "cos336-336"),
)
GRAFTED = tuple(
    f"graft:{name}"
    for name in (
        *("", "after", "whole", "full", "lora", "random", "early", "foreign", "cos"),
        *(
            f"{size}{kind}"
            for size in ("3b", "8b", "70b", "qwen3_4b")
            for kind in ("", "-whole", "-full", "-lora", "-cos")
        ),
    )
)
VOCABULARY = 296  # of small decoders, so that a plan needs no data


def recipe(variant: str) -> Recipe:
    """The recipe of a variant; paths of data stay empty."""
    file, name = place(variant)
    return load(f"{file}:{name}" if name else file, partial=True)


def place(variant: str) -> tuple[str, str]:
    """The config file, and the variant's name there."""
    if not variant.startswith("graft:"):
        return CONFIG, variant
    return str(ROOT / "configs" / "graft.py"), variant.removeprefix("graft:")


def summary(variant: str) -> dict[str, Any]:
    """Tokens, scales and counts of a variant, by stage."""
    stages = {}
    for entry in plan.make_plan(vocabulary.filled(recipe(variant), VOCABULARY)):
        connector = entry.stage.model.connector
        stages[entry.stage.name] = {
            "image_size": entry.stage.model.vision.image_size,
            "visual_tokens": entry.stage.model.visual_tokens,
            "row_length": entry.row_length,
            **{
                name: _listed(getattr(connector, name, ()))
                for name in ("windows", "queries", "parents", "feature_layers")
            },
            "transitions": _listed(entry.stage.transitions),
            "parameters": dict(entry.parameters),
            "trained": sum(entry.trained.values()),
            "flops_per_row": entry.flops.row.total,
        }
    return {"stages": stages, "notes": dict(read_config(*place(variant)).notes)}


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def golden_file(variant: str) -> pathlib.Path:
    return GOLDEN / "recipes" / f"{variant.removesuffix(':').replace(':', '-') or 'default'}.json"


def main() -> None:
    (GOLDEN / "recipes").mkdir(exist_ok=True)
    for variant in WHOLE:
        golden_file(variant).write_text(json.dumps(to_json(recipe(variant)), indent=1) + "\n")
    (GOLDEN / "variants.json").write_text(
        json.dumps({variant: summary(variant) for variant in (*VARIANTS, *GRAFTED)}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()
