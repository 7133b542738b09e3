"""Vision encoder -> connector -> visual tokens placed into the token rows -> decoder."""

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.kernels.attention import IntervalMask
from mmjax.models import lora
from mmjax.models.config import MLPConfig, VLMConfig
from mmjax.models.connectors import make_connector
from mmjax.models.decoder import Decoder
from mmjax.models.vit import ViT
from mmjax.typing import NO_TARGET, AnyArray, Array, Batch, Float, Int, UInt8


class VLM(nnx.Module):
    """The whole model. Its parameter paths begin with "vision/", "connector/" and "decoder/"."""

    def __init__(self, config: VLMConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        self.vision = ViT(config.vision, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll)
        self.connector = make_connector(config.connector, config.vision.width, config.decoder.width, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config.decoder, dtype=dtype, rngs=rngs, remat=config.remat, unroll=config.unroll)
        if config.lora.rank:
            lora.attach(self, config.lora, rngs)
        self.config = config

    def encode_images(self, images: UInt8[AnyArray, "B I h w 3"]) -> Float[Array, "B I L D"]:
        """Visual tokens of every picture slot, in the compute dtype."""
        rows, per_row = images.shape[:2]
        features = self.features(images.reshape(rows * per_row, *images.shape[2:]))
        with jax.named_scope("connector"):
            tokens = self.connector(features)
        return tokens.reshape(rows, per_row, *tokens.shape[1:])

    def features(self, images: UInt8[AnyArray, "B h w 3"]) -> tuple[Float[Array, "B P D"], ...]:
        """What the connector reads of each picture: a value for each of its feature layers, with the class token in front if it asks."""
        connector = self.config.connector
        if not isinstance(connector, MLPConfig):
            return self.vision(images, connector.feature_layers)
        found = self.vision.hidden_states(images, connector.feature_layers)
        if connector.final_norm:
            found = tuple(map(self.vision.final_norm, found))
        skipped = int(self.config.vision.class_token and not connector.class_token)
        return tuple(x[:, skipped:] for x in found)

    def embed(self, batch: Batch) -> Float[Array, "B T D"]:
        """Embeddings of the row: the table's at text, the connector's where `image_slot` points; zero for a slot that holds no picture."""
        text = self.decoder.embed_tokens(batch.tokens)
        if not batch.images.shape[1]:
            return text
        visual = self.encode_images(batch.images)
        visual = jnp.where(batch.image_mask[:, :, None, None], visual, 0)
        visual = visual.reshape(visual.shape[0], -1, visual.shape[-1])
        placed = jnp.take_along_axis(visual, jnp.maximum(batch.image_slot, 0)[..., None], axis=1)
        return jnp.where((batch.image_slot >= 0)[..., None], placed, text)

    def hidden(self, batch: Batch) -> Float[Array, "B T D"]:
        """The decoder's states after its final norm."""
        mask = IntervalMask.from_segments(batch.segments, batch.prefixes)
        return self.decoder(self.embed(batch), batch.positions, mask)[0]

    def __call__(self, batch: Batch) -> Float[Array, "B T V"]:
        """Logits at every position, float32."""
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
