"""Whole models: the VLM (vision encoder -> connector -> visual tokens placed into the token rows -> decoder), and one part on its own.

A decoder or an encoder alone is what most published checkpoints hold. Its parameters have the paths that they have in a VLM.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from mmjax.kernels.attention import IntervalMask
from mmjax.models import check_inputs, lora
from mmjax.models.config import LanguageModelConfig, VisionEncoderConfig, VLMConfig
from mmjax.models.decoder import Decoder
from mmjax.models.vit import ViT
from mmjax.typing import NO_TARGET, AnyArray, Array, Batch, Float, Int, UInt8


class VLM(nnx.Module):
    """The whole model. Its parameter paths begin with "vision/", "connector/" and "decoder/"."""

    def __init__(self, config: VLMConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.vision = ViT(
            config.vision, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll
        )
        self.connector = config.connector.build(
            config.vision, config.decoder.width, dtype=dtype, rngs=rngs
        )
        self.decoder = Decoder(
            config.decoder, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll
        )
        if config.lora.rank:
            lora.attach(self, config.lora, rngs)
        self.config = config

    def encode_images(self, images: UInt8[AnyArray, "B I h w 3"]) -> Float[Array, "B I L D"]:
        """Visual tokens of every image slot, in the compute dtype."""
        features = self.features(rearrange(images, "B I h w c -> (B I) h w c"))
        with jax.named_scope("connector"):
            tokens = self.connector(features)
        return rearrange(tokens, "(B I) L D -> B I L D", B=len(images))

    def features(self, images: UInt8[AnyArray, "B h w 3"]) -> tuple[Float[Array, "B P D"], ...]:
        """What the connector reads of each image: a value for each of its feature layers, with the class token in front if it asks."""
        connector = self.config.connector
        found = self.vision.hidden_states(images, connector.feature_layers)
        if connector.final_norm:
            found = tuple(map(self.vision.final_norm, found))
        skipped = int(self.config.vision.class_token and not connector.class_token)
        return tuple(x[:, skipped:] for x in found)

    def embed(self, batch: Batch) -> Float[Array, "B T D"]:
        """Embeddings of the row: the table's at text, the connector's where `visual_embedding_index` points; zero for a slot that holds
        no image."""
        text = self.decoder.embed_tokens(batch.tokens)
        if not batch.images.shape[1]:
            return text
        visual = self.encode_images(batch.images)
        visual = jnp.where(batch.image_mask[:, :, None, None], visual, 0)
        visual = rearrange(visual, "B I L D -> B (I L) D")
        placed = jnp.take_along_axis(
            visual, jnp.maximum(batch.visual_embedding_index, 0)[..., None], axis=1
        )
        return jnp.where((batch.visual_embedding_index >= 0)[..., None], placed, text)

    def hidden(self, batch: Batch) -> Float[Array, "B T D"]:
        """The decoder's states after its final norm."""
        mask = IntervalMask.from_segments(batch.segment_ids, batch.prefix_segment_ids)
        return self.decoder(self.embed(batch), batch.positions, mask)[0]

    def __call__(self, batch: Batch) -> Float[Array, "B T V"]:
        """Logits at every position, float32. Raises InputError if the arrays do not fit each other or the model."""
        check_inputs.check_batch(
            batch, self.config.decoder.vocabulary, self.config.vision.image_size
        )
        return self.decoder.logits(self.hidden(batch))

    def supervised_logits(self, batch: Batch) -> tuple[Float[Array, "B t V"], Int[Array, "B t"]]:
        """Logits and targets of the positions that may have a target: t = T - I * L of them, as many as a row has room for text.

        The head is the widest matrix of the model; it runs on text only, however many visual tokens a row has.
        """
        images = batch.image_mask.shape[1]
        text = batch.tokens.shape[1] - images * self.config.visual_tokens
        chosen = jnp.argsort(batch.targets == NO_TARGET, axis=1, stable=True)[:, :text]
        hidden = jnp.take_along_axis(self.hidden(batch), chosen[..., None], axis=1)
        return self.decoder.logits(hidden), jnp.take_along_axis(batch.targets, chosen, axis=1)


class LanguageModel(nnx.Module):
    """Tokens to logits. Its parameter paths begin with "decoder/"."""

    def __init__(self, config: LanguageModelConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.decoder = Decoder(
            config.decoder, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll
        )
        self.config = config

    def __call__(
        self, tokens: Int[AnyArray, "B T"], segments: Int[AnyArray, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of the next token at every position, float32.

        Args:
            segments: 0 for padding at the end of a row, 1 elsewhere; None: no padding.

        Raises:
            InputError: tokens or segments are no such arrays, or there is an id that the vocabulary does not have.
        """
        embeddings, positions, mask = self._row(tokens, segments)
        return self.decoder.logits(self.decoder(embeddings, positions, mask)[0])

    def hidden_states(
        self, tokens: Int[AnyArray, "B T"], segments: Int[AnyArray, "B T"] | None = None
    ) -> Float[Array, "layers B T D"]:
        """The states that each block leaves, before the final norm; arguments as of a call."""
        return self.decoder.hidden_states(*self._row(tokens, segments))

    def _row(
        self, tokens: AnyArray, segments: AnyArray | None
    ) -> tuple[Array, Array, IntervalMask]:
        """What the decoder is given of a row: embeddings, positions, and who sees whom."""
        check_inputs.check_row(tokens, segments, self.config.decoder.vocabulary)
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
        self.vision = ViT(
            config.vision, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll
        )
        self.config = config

    def __call__(
        self,
        pixels: UInt8[AnyArray, "B h w 3"] | Float[AnyArray, "B h w 3"],
        layers: tuple[int, ...] | None = None,
    ) -> tuple[Float[Array, "B T D"], ...]:
        """Hidden states after `layers` blocks each, the class token in front where there is one; k is Hugging Face's hidden_states[k].

        Args:
            layers: non-decreasing block counts, 0 to the number of blocks; None: the last one only.

        Raises:
            ValueError: there is no such layer, or the pixels are no images with the three channels last.
        """
        check_inputs.check_pixels(pixels)
        blocks = self.config.vision.layers
        layers = (blocks,) if layers is None else layers
        if (
            not layers
            or list(layers) != sorted(layers)
            or not 0 <= layers[0] <= layers[-1] <= blocks
        ):
            raise ValueError(
                f"layers are {layers}; they must be numbers from 0 to {blocks} that do not decrease"
            )
        return self.vision.hidden_states(pixels, tuple(layers))

    def last(
        self, pixels: UInt8[AnyArray, "B h w 3"] | Float[AnyArray, "B h w 3"]
    ) -> Float[Array, "B T D"]:
        """After all blocks and the final norm (of CLIP: its post_layernorm, on every token)."""
        x = self(pixels)[-1]
        return self.vision.final_norm(x) if self.config.vision.final_norm else x

    def pooled(
        self, pixels: UInt8[AnyArray, "B h w 3"] | Float[AnyArray, "B h w 3"]
    ) -> Float[Array, "B D"]:
        """One vector for each image: of the pooling head, or else of the class token after the final norm.

        Raises:
            ValueError: the encoder has neither.
        """
        if self.config.vision.pooling_head:
            return self.vision.head(self.last(pixels))
        if not self.config.vision.class_token:
            raise ValueError(
                "this encoder has neither a pooling head nor a class token, so there is no one vector for an image"
            )
        return self.last(pixels)[:, 0]
