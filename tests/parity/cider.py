"""Writes cider.json: CIDEr-D of made-up captions by pycocoevalcap 1.2, beside which tests/parity/test_cider_parity.py puts ours.

    python -m venv cider && cider/bin/pip install --no-deps pycocoevalcap==1.2 numpy
    cider/bin/python tests/parity/cider.py

Captions are words with spaces between them, so that no tokenizer has a say.
"""

import importlib.metadata
import json
import pathlib
import platform
import random

from pycocoevalcap.cider.cider import Cider

OUTPUT = pathlib.Path(__file__).with_name("cider.json")
SEED = 0
WORDS = [
    "a",
    "the",
    "red",
    "green",
    "small",
    "boat",
    "house",
    "bird",
    "on",
    "in",
    "water",
    "tree",
    "of",
    "two",
]
IMAGES = 40


def caption(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(1, 14)))


def corpus(generator: random.Random) -> list[dict]:
    """Images with one to four true captions, and a candidate: another caption, one of them, one that repeats itself, or nothing."""
    images = []
    for _ in range(IMAGES):
        references = [caption(generator) for _ in range(generator.randint(1, 4))]
        words = generator.choice(references).split()
        changed = [generator.choice(WORDS) if generator.random() < 0.3 else word for word in words]
        candidates = [
            caption(generator),
            " ".join(words),
            " ".join(changed),
            " ".join(words[:2] * 4),
            "",
        ]
        images.append(
            {
                "references": references,
                "candidate": generator.choices(candidates, (2, 2, 4, 2, 1))[0],
            }
        )
    return images


def main() -> None:
    images = corpus(random.Random(SEED))
    references = {number: image["references"] for number, image in enumerate(images)}
    mean, scores = Cider().compute_score(
        references, {number: [image["candidate"]] for number, image in enumerate(images)}
    )
    versions = {name: importlib.metadata.version(name) for name in ("pycocoevalcap", "numpy")}
    metadata = {
        "script": pathlib.Path(__file__).name,
        "seed": SEED,
        "python": platform.python_version(),
        **versions,
    }
    content = {
        "metadata": metadata,
        "images": images,
        "scores": scores.tolist(),
        "mean": float(mean),
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


main()
