"""Models of a few thousand parameters in folders as published ones are, with a tokenizer of single characters and a chat template."""

import json
import pathlib
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models

from mmjax.models import parameters
from mmjax.models.config import (
    DecoderConfig,
    LanguageModelConfig,
    ModelConfig,
    VisionEncoderConfig,
    ViTConfig,
    VLMConfig,
)
from mmjax.models.connectors.linear import LinearConfig
from mmjax.weights.save import save_params

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
SPECIALS = ["<s>", "</s>", "<|user|>", "<|model|>", "<|end|>", "<image>"]
VOCABULARY = len(CHARACTERS) + len(SPECIALS)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|model|>' if m.role == 'assistant' else '<|user|>' }}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|model|>{% endif %}"
)
VISION = ViTConfig(8, 4, 16, 1, 2, 16, weight_std=None, embedding_std=0.5)


def decoder(**changes: Any) -> DecoderConfig:
    """Two layers with grouped queries."""
    sizes = {
        "vocabulary": VOCABULARY,
        "width": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "mlp_width": 32,
    }
    return DecoderConfig(**sizes | {"weight_std": None, "embedding_std": 1.0} | changes)


def language_model(**changes: Any) -> LanguageModelConfig:
    return LanguageModelConfig(decoder(**changes), compute_dtype="float32")


def vision_encoder() -> VisionEncoderConfig:
    return VisionEncoderConfig(VISION, compute_dtype="float32")


def vlm(**changes: Any) -> VLMConfig:
    """Four visual tokens an image."""
    return VLMConfig(
        VISION,
        LinearConfig("linear", (1,), weight_std=1.0),
        decoder(**changes),
        compute_dtype="float32",
    )


def save(
    folder: pathlib.Path, config: ModelConfig, *, seed: int = 0, template: str | None = TEMPLATE
) -> pathlib.Path:
    """A folder with freshly drawn weights and the tokenizer: beside the weights, or with the decoder of a whole model."""
    save_params(draw(config, seed), config, folder)
    if not isinstance(config, VisionEncoderConfig):
        save_tokenizer(folder / "decoder" if isinstance(config, VLMConfig) else folder, template)
    return folder


def draw(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters drawn by numpy: there is nothing to compile, and biases and norms are no zeros and ones.

    The likeliest token is never white space and never special, unless the head is tied: greedy answers are words that do not end.
    """
    generator = np.random.default_rng(seed)

    def numbers(path: str, shape: tuple[int, ...]) -> np.ndarray:
        found = generator.normal(size=shape).astype(np.float32)
        match path.rsplit("/", 1)[1]:
            case "scale":
                return 1 + 0.1 * found
            case "bias":
                return 0.1 * found
            case "kernel":
                return found * shape[-2] ** -0.5
            case _:
                return found

    params = {
        path: numbers(path, shape.shape) for path, shape in parameters.abstract(config)[1].items()
    }
    head = params.get("decoder/lm_head/kernel")
    if head is not None and head.shape[1] == VOCABULARY:
        head[:, 0] = head[:, len(CHARACTERS) - 1] = (
            head[:, CHARACTERS.index("a")] / 2
        )  # less than that one, or than any that is positive
        head[:, len(CHARACTERS) :] = head[:, :1]
    return params


def save_tokenizer(folder: pathlib.Path, template: str | None = TEMPLATE) -> None:
    tokenizer = tokenizers.Tokenizer(
        models.BPE({character: index for index, character in enumerate(CHARACTERS)}, [])
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>"} | (
        {"chat_template": template} if template else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
