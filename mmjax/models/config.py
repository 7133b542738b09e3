"""What a model is: plain frozen dataclasses, one per part. Every number a checkpoint's shapes depend on stands here."""

from dataclasses import dataclass
from typing import Literal

from mmjax.models.connectors.base import ConnectorConfig

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
Norm = Literal["layer", "rms"]


# Settings of encoders and decoders that say how fresh numbers are drawn, or what was done in training: nothing of what is computed.
NOT_OF_THE_FUNCTION = ("weight_std", "embedding_std", "context_length")


@dataclass(frozen=True)
class LayerRange:
    """Blocks of an encoder or a decoder that lie in one stack.

    Attributes:
        path: of the stack, below that of its part: "layers", or such as "translators/0/layers".
        start, stop: which blocks of the published model they are, or, of trained ones, begin as.
    """

    path: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many blocks."""
        return self.stop - self.start


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer in the pre-norm form of CLIP (arXiv:2103.00020), with what SigLIP and DINOv2 do otherwise as fields.

    Attributes:
        image_size, patch_size: pixels per side. The position table belongs to images of image_size; for others it is interpolated.
        layers: blocks that exist, which ends with the last one that the connector reads (CLIP's own 24th, for one, is not part of a
            model that reads its 23rd).
        class_token: whether a learned token stands before the patches.
        embedding_norm: CLIP's norm between the embeddings and the first block (`ln_pre`).
        patch_bias: whether the patch projection has a bias (CLIP: no).
        gated_mlp: silu(gate(x)) * up(x) in the place of activation(up(x)) (DINOv2 giant).
        layer_scale: a learned factor per channel on what each half of a block adds (DINOv2, arXiv:2304.07193).
        final_norm: a norm after the last block, for `VisionEncoder.last` and `pooled`, and for connectors that ask for it.
        pooling_head: one learned query that reads all patches (SigLIP, arXiv:2303.15343), for `VisionEncoder.pooled`.
        separate_last_layers: so many of the last blocks lie in a stack of their own, "separate_last_layers/layers", so that they can be
        trained without the others.
        weight_std: standard deviation of the truncated normal initialisation of kernels; None: fan_in ** -0.5.
        embedding_std: the same for the class token and the position table.
        image_mean, image_std: per channel, of pixels scaled to [0, 1].
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = "quick_gelu"
    norm: Norm = "layer"
    norm_epsilon: float = 1e-5
    class_token: bool = True
    embedding_norm: bool = True
    patch_bias: bool = False
    gated_mlp: bool = False
    layer_scale: bool = False
    final_norm: bool = False
    pooling_head: bool = False
    separate_last_layers: int = 0
    weight_std: float | None = 0.02
    embedding_std: float = 0.02
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def layer_ranges(self) -> tuple[LayerRange, ...]:
        """The stacks that the blocks lie in, in the order in which they run."""
        early = self.layers - self.separate_last_layers
        return tuple(
            layer_range
            for layer_range in (
                LayerRange("layers", 0, early),
                LayerRange("separate_last_layers/layers", early, self.layers),
            )
            if layer_range.size
        )


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's rescaling of rotary frequencies: wavelengths beyond the original context are stretched by `factor`."""

    kind: Literal["llama3"]
    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int


@dataclass(frozen=True)
class LinearScaling:
    """All positions divided by `factor` (arXiv:2306.15595): Vicuna-16k."""

    kind: Literal["linear"]
    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """A base that grows with the text where it is longer than the original context ("NTK-aware"), and plain frequencies before."""

    kind: Literal["dynamic"]
    factor: float
    original_length: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): frequencies that turn less than beta_slow times in the original context are divided by `factor`, those that
    turn more than beta_fast times are kept, with a ramp between; queries and keys are multiplied by `attention_factor`.

    Attributes:
        truncate: whether the ends of the ramp are whole dimensions.
    """

    kind: Literal["yarn"]
    factor: float
    original_length: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RopeScaling = Llama3Scaling | LinearScaling | DynamicScaling | YarnScaling


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama decoder: RMSNorm, grouped-query attention, SwiGLU, rotary positions; with what its relatives do otherwise as fields.

    With `replaced_layers` it is a surrogate (arXiv:2505.22664): some ranges of its blocks are removed, and a few trained ones, which
    begin as the first of those, stand in the place of each range.

    Attributes:
        layers: blocks of the published model, removed ones included; `depth` says how many run.
        replaced_layers: ranges [first, end) of blocks, in order; empty: all are there.
        translators: trained blocks in the place of each range.
        vocabulary: V; None: as many as the recipe's tokenizer needs, which is known once that is read or built from the training text
            (`data.text.vocabulary`).
        heads, kv_heads: N and K; K divides N.
        context_length: tokens that it was trained to read at once; None: unknown. Nothing here depends on it.
        tie_word_embeddings: the output projection is the transposed embedding table.
        qkv_bias: on query, key and value (Qwen2); output_bias: on the output of attention; mlp_bias: in the MLP.
        query_key_norm: an RMSNorm over every head of queries and keys (Qwen3).
        sliding_window: a token sees itself and the window - 1 tokens before (Mistral, arXiv:2310.06825); None: all of them.
        experts: MLPs of which a router picks `experts_per_token` for every token (Mixtral, arXiv:2401.04088); 0: one MLP without router.
        weight_std: initialisation of kernels, as in ViTConfig; embedding_std of the table.
    """

    vocabulary: int | None
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    context_length: int | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    sliding_window: int | None = None
    experts: int = 0
    experts_per_token: int = 2
    replaced_layers: tuple[tuple[int, int], ...] = ()
    translators: int = 1
    weight_std: float | None = 0.02
    embedding_std: float = 0.02

    @property
    def layer_ranges(self) -> tuple[LayerRange, ...]:
        """The stacks that the blocks lie in, in the order in which they run: one, or in turn those that are kept and translators."""
        if not self.replaced_layers:
            return (LayerRange("layers", 0, self.layers),)
        found, kept, begin = [], 0, 0
        for number, (first, end) in enumerate((*self.replaced_layers, (self.layers, self.layers))):
            if first > begin:
                found.append(LayerRange(f"kept_layers/{kept}/layers", begin, first))
                kept += 1
            if first < end:
                found.append(
                    LayerRange(f"translators/{number}/layers", first, first + self.translators)
                )
            begin = end
        return tuple(found)

    @property
    def depth(self) -> int:
        """Blocks that run."""
        return sum(layer_range.size for layer_range in self.layer_ranges)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Which blocks of the published model they are, or begin as."""
        return tuple(
            block
            for layer_range in self.layer_ranges
            for block in range(layer_range.start, layer_range.stop)
        )


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank updates (arXiv:2106.09685) beside chosen linear maps: y = x W + (alpha / rank) x A B. Rank 0: none.

    Attributes:
        targets: globs over module paths, such as "decoder/layers/*" (every linear map of every decoder block).
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("decoder/layers/*",)


@dataclass(frozen=True)
class VLMConfig:
    """Vision encoder -> connector -> decoder.

    Attributes:
        compute_dtype: of activations and matrix products; parameters, norms, softmax and logits stay float32.
        remat: what the backward pass recomputes: nothing, all but matrix products ("dots"), or whole blocks ("full").
        unroll: layers per iteration of the scan over blocks. 1 compiles fastest; the number of layers runs fastest on CPUs.
    """

    vision: ViTConfig
    connector: ConnectorConfig
    decoder: DecoderConfig
    lora: LoRAConfig = LoRAConfig()
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "dots", "full"] = "none"
    unroll: int = 1

    @property
    def visual_tokens(self) -> int:
        """L: visual tokens per image."""
        return self.connector.visual_tokens(self.vision)


@dataclass(frozen=True)
class LanguageModelConfig:
    """A decoder on its own; the other fields as in VLMConfig."""

    decoder: DecoderConfig
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "dots", "full"] = "none"
    unroll: int = 1


@dataclass(frozen=True)
class VisionEncoderConfig:
    """A vision encoder on its own; the other fields as in VLMConfig."""

    vision: ViTConfig
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Literal["none", "dots", "full"] = "none"
    unroll: int = 1


ModelConfig = VLMConfig | LanguageModelConfig | VisionEncoderConfig
