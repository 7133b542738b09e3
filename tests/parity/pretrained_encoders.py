"""Vision encoders of transformers in small, and LLaVA: hidden states, pooled vectors, logits. For record_pretrained.py."""

import dataclasses

import numpy as np
import torch
import transformers
from recording import randomize
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "attn_implementation": "eager",
}
TEXT = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
DINOV2 = {key: value for key, value in VISION.items() if key != "intermediate_size"} | {
    "image_size": 24,
    "mlp_ratio": 2,
}
# The last of each has as many patches as the first.
SIZES = {"own": (16, 16), "larger": (24, 24), "wide": (8, 32)}
DINOV2_SIZES = {"own": (24, 24), "smaller": (16, 16), "tall": (36, 16)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A class of transformers with its settings; height and width of images by name."""

    kind: str
    settings: dict[str, object]
    sizes: dict[str, tuple[int, int]]
    vision: dict[str, object] | None = (
        None  # of a model of images and text, whose other part is TEXT
    )

    @property
    def processor(self) -> transformers.image_processing_utils.BaseImageProcessor:
        side = (self.vision or self.settings)["image_size"]
        if self.kind.startswith("Dinov2"):
            shape = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
            return transformers.BitImageProcessor(
                **shape, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD
            )
        if self.kind.startswith("Siglip"):
            return transformers.SiglipImageProcessor(size={"height": side, "width": side})
        return transformers.CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )


OWN = {"own": SIZES["own"]}
CASES = {
    "clip_vision": Case("CLIPVision", VISION, SIZES),
    "clip_whole": Case("CLIP", {"projection_dim": 8}, OWN, VISION | {"hidden_act": "gelu"}),
    "siglip_vision": Case("SiglipVision", VISION, SIZES),
    "siglip_headless": Case("SiglipVision", VISION | {"vision_use_head": False}, OWN),
    "siglip_whole": Case("Siglip", {}, OWN, VISION | {"layer_norm_eps": 1e-3}),
    "dinov2": Case("Dinov2", DINOV2, DINOV2_SIZES),
    "dinov2_swiglu": Case(
        "Dinov2", DINOV2 | {"use_swiglu_ffn": True}, {"tall": DINOV2_SIZES["tall"]}
    ),
}


def make_encoder(case: Case, seed: int) -> torch.nn.Module:
    settings = (
        case.settings
        if case.vision is None
        else case.settings | {"vision_config": case.vision, "text_config": TEXT}
    )
    model = getattr(transformers, f"{case.kind}Model")(
        getattr(transformers, f"{case.kind}Config")(**settings)
    ).eval()
    randomize(model, seed)
    return model


@torch.no_grad()
def record_encoder(model: torch.nn.Module, case: Case, seed: int) -> dict[str, np.ndarray]:
    """Images, pixels as the image processor normalises them, and the outputs, for every size."""
    tower = model if case.vision is None else model.vision_model
    generator = np.random.default_rng(seed)
    arrays = {}
    for size, (height, width) in case.sizes.items():
        images = generator.integers(
            0, 256, (2 if size == "own" else 1, height, width, 3), dtype=np.uint8
        )
        pixels = normalise(case.processor, images)
        arrays |= {f"{name}:{size}": value for name, value in outputs_of(tower, pixels).items()}
        arrays |= {f"images:{size}": images, f"pixels:{size}": pixels.permute(0, 2, 3, 1).numpy()}
    return arrays


def normalise(
    processor: transformers.image_processing_utils.BaseImageProcessor, images: np.ndarray
) -> torch.Tensor:
    off = {"do_resize": False} | (
        {}
        if isinstance(processor, transformers.SiglipImageProcessor)
        else {"do_center_crop": False}
    )
    return processor(list(images), return_tensors="pt", **off)["pixel_values"]


def outputs_of(tower: torch.nn.Module, pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """Hidden states [layers + 1, B, T, D], the last one after the final norm, and the pooled vector if there is one."""
    # DINOv2 interpolates its positions by itself, the others when they are told to.
    own = pixels.shape[2:] == (tower.config.image_size,) * 2
    others = (
        {} if tower.config.model_type == "dinov2" or own else {"interpolate_pos_encoding": True}
    )
    output = tower(pixels, output_hidden_states=True, **others)
    hidden = torch.stack(output.hidden_states)
    # transformers returns CLIP's last state before the norm and the others' after it.
    norm = tower.layernorm if hasattr(tower, "layernorm") else tower.post_layernorm
    last = norm(hidden[-1])
    is_clip = hasattr(tower, "pre_layrnorm")
    assert torch.equal(output.last_hidden_state, hidden[-1] if is_clip else last)
    arrays = {"hidden": hidden, "last": last}
    if output.pooler_output is not None:
        arrays["pooled"] = output.pooler_output
    return {name: value.numpy() for name, value in arrays.items()}


IMAGE_TOKEN = 39


def make_llava(seed: int) -> tuple[torch.nn.Module, transformers.CLIPImageProcessor]:
    """CLIP and Llama with a projector between; the second-to-last layer is read, without the class token."""
    text = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
    )
    vision = transformers.CLIPVisionConfig(**VISION)
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=16,
        attn_implementation="eager",
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    randomize(model, seed)
    return model, CASES["clip_vision"].processor


@torch.no_grad()
def record_llava(
    model: torch.nn.Module, processor: transformers.CLIPImageProcessor, seed: int
) -> dict[str, np.ndarray]:
    """Logits of a text with one image and of one with two; of text alone; hidden states of the images."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = normalise(processor, images)
    words = [generator.integers(0, IMAGE_TOKEN, length) for length in (3, 5, 4)]
    image = np.full(16, IMAGE_TOKEN)
    texts = {1: [words[0], image, words[1]], 2: [words[0], image, words[1], image, words[2]]}
    arrays = {"images": images, "pixels:own": pixels.permute(0, 2, 3, 1).numpy()}
    for count, parts in texts.items():
        tokens = np.concatenate(parts)[None]
        output = model(input_ids=torch.from_numpy(tokens), pixel_values=pixels[:count])
        arrays |= {f"tokens:{count}": tokens, f"logits:{count}": output.logits.numpy()}
    plain = generator.integers(0, IMAGE_TOKEN, (2, 24))
    arrays |= {"tokens": plain, "logits": model(input_ids=torch.from_numpy(plain)).logits.numpy()}
    return arrays | {
        f"{name}:own": value for name, value in outputs_of(model.model.vision_tower, pixels).items()
    }
