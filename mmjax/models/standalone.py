"""A decoder or a vision encoder on its own, as most published checkpoints are. Its parameters have the paths that they have in a VLM."""

import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import IntervalMask
from mmjax.models.config import LanguageModelConfig, VisionEncoderConfig
from mmjax.models.decoder import Decoder
from mmjax.models.vit import ViT
from mmjax.typing import AnyArray, Array, Float, Int, UInt8


class LanguageModel(nnx.Module):
    """Tokens to logits. Its parameter paths begin with "decoder/"."""

    def __init__(self, config: LanguageModelConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.decoder = Decoder(config.decoder, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll)
        self.config = config

    def __call__(self, tokens: Int[AnyArray, "B T"], segments: Int[AnyArray, "B T"] | None = None) -> Float[Array, "B T V"]:
        """Logits of the next token at every position, float32.

        Args:
            segments: 0 for padding at the end of a row, 1 elsewhere; None: no padding.
        """
        embeddings, positions, mask = self._row(tokens, segments)
        return self.decoder.logits(self.decoder(embeddings, positions, mask)[0])

    def hidden_states(self, tokens: Int[AnyArray, "B T"], segments: Int[AnyArray, "B T"] | None = None) -> Float[Array, "layers B T D"]:
        """The states that each block leaves, before the final norm; arguments as of a call."""
        return self.decoder.hidden_states(*self._row(tokens, segments))

    def _row(self, tokens: AnyArray, segments: AnyArray | None) -> tuple[Array, Array, IntervalMask]:
        """What the decoder is given of a row: embeddings, positions, and who sees whom."""
        segments = jnp.ones(tokens.shape, jnp.int32) if segments is None else segments
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        return self.decoder.embed_tokens(tokens), positions, IntervalMask.from_segments(segments)


class VisionEncoder(nnx.Module):
    """Pixels to features. Its parameter paths begin with "vision/".

    Pixels are uint8 in 0..255, or floats that are normalised already, [B, h, w, 3]; for another size than the config's, positions are
    interpolated.
    """

    def __init__(self, config: VisionEncoderConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.vision = ViT(config.vision, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll)
        self.config = config

    def __call__(
        self, pixels: UInt8[AnyArray, "B h w 3"] | Float[AnyArray, "B h w 3"], layers: tuple[int, ...] | None = None
    ) -> tuple[Float[Array, "B T D"], ...]:
        """Hidden states after `layers` blocks each, the class token in front where there is one; k is Hugging Face's hidden_states[k].

        Args:
            layers: non-decreasing block counts, 0 to the number of blocks; None: the last one only.

        Raises:
            ValueError: there is no such layer, or the pixels are no pictures with the three channels last.
        """
        if jnp.ndim(pixels) != 4 or jnp.shape(pixels)[-1] != 3:
            raise ValueError(f"pixels are {jnp.shape(pixels)}; they must be [pictures, height, width, 3]")
        blocks = self.config.vision.layers
        layers = (blocks,) if layers is None else layers
        if not layers or list(layers) != sorted(layers) or not 0 <= layers[0] <= layers[-1] <= blocks:
            raise ValueError(f"layers are {layers}; they must be numbers from 0 to {blocks} that do not decrease")
        return self.vision.hidden_states(pixels, tuple(layers))

    def last(self, pixels: UInt8[AnyArray, "B h w 3"] | Float[AnyArray, "B h w 3"]) -> Float[Array, "B T D"]:
        """After all blocks and the final norm (of CLIP: its post_layernorm, on every token)."""
        x = self(pixels)[-1]
        return self.vision.final_norm(x) if self.config.vision.final_norm else x

    def pooled(self, pixels: UInt8[AnyArray, "B h w 3"] | Float[AnyArray, "B h w 3"]) -> Float[Array, "B D"]:
        """One vector for each picture: of the pooling head, or else of the class token after the final norm.

        Raises:
            ValueError: the encoder has neither.
        """
        if self.config.vision.pooling_head:
            return self.vision.head(self.last(pixels))
        if not self.config.vision.class_token:
            raise ValueError("this encoder has neither a pooling head nor a class token, so there is no one vector for a picture")
        return self.last(pixels)[:, 0]
