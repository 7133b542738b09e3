"""Axis letters and the batch: the vocabulary that every other file shares.

| letter | axis |
|---|---|
| B | batch rows |
| T | tokens per row (visual placeholders and text) |
| S | keys (and values) that a query may look at |
| I | images per row |
| P | patches per image |
| W | windows per image |
| Q | queries per window |
| L | visual tokens per image |
| N, K | query heads, key/value heads; G = N / K |
| H | head dimension |
| D | width of the residual stream |
| F | width of the hidden layer of an MLP |
| V | vocabulary |
| h, w | image height and width in pixels |

Arrays are annotated as `Float[Array, "B T D"]` (jaxtyping); the tests check the annotations at run time, production does not.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

__all__ = ["AnyArray", "Array", "Batch", "Bool", "Float", "Int", "Params", "UInt8"]

# Parameters are one flat dictionary from a slash-separated path ("decoder/layers/attention/query/kernel") to an array. Stacked layers
# carry a leading `layers` axis. Freezing, transitions, manifests and weight files are then plain dictionary work.
type Params = dict[str, jax.Array]

# What a batch is made of: numpy arrays while rows are packed, device arrays in a step.
AnyArray = Array | np.ndarray

PADDING_SEGMENT = 0
NO_TARGET = -1
NO_IMAGE = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of packed tokens with their images: all that a training step reads.

    A row holds segments 1, 2, ... in order, then padding (segment 0). A token attends causally within its own segment and, where
    `prefix_segment_ids`
    names another segment, to the whole of that one: several questions about one image share the image's tokens and do not see each
    other.

    Attributes:
        tokens: [B, T] int32 token ids. A visual token holds the tokenizer's image id; its embedding comes from `images`.
        targets: [B, T] int32, the token to predict at each position, or -1 where there is no loss.
        segment_ids: [B, T] int32, non-decreasing 1..n, then 0 for padding.
        prefix_segment_ids: [B, T] int32, the segment whose every token this token also sees, or 0 for none.
        positions: [B, T] int32, the rotary position of each token. A segment with a prefix continues counting after it.
        images: [B, I, h, w, 3] uint8 pixels.
        image_mask: [B, I] bool, False where the slot holds no image.
        visual_embedding_index: [B, T] int32, index into the row's I * L visual tokens, or -1 at text.
    """

    tokens: Int[AnyArray, "B T"]
    targets: Int[AnyArray, "B T"]
    segment_ids: Int[AnyArray, "B T"]
    prefix_segment_ids: Int[AnyArray, "B T"]
    positions: Int[AnyArray, "B T"]
    images: UInt8[AnyArray, "B I h w 3"]
    image_mask: Bool[AnyArray, "B I"]
    visual_embedding_index: Int[AnyArray, "B T"]
