"""How likely a model finds given captions of given images: the loss of training, summed over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmjax.data.examples import Continuation, Image
from mmjax.data.images.decode import ImageCache
from mmjax.data.packing.layout import Row, RowShape, RowWriter, stack
from mmjax.data.text.tokenizer import SegmentTokenizer
from mmjax.errors import InputError, Preempted
from mmjax.evaluation.tasks.base import EvaluatedModel
from mmjax.inference.generate import BUCKET
from mmjax.training.step import make_evaluation_step


@dataclass(frozen=True)
class CaptionSums:
    """Sums over captions.

    Attributes:
        nats: negative log likelihood.
        tokens: that it was summed over: what the captions say, and what ends them.
        captions: how many there are.
    """

    nats: float
    tokens: int
    captions: int


class CaptionLikelihood:
    """Measures a model on captions; the images that they stand beside may be exchanged. All calls share one compiled program."""

    def __init__(self, evaluated: EvaluatedModel, captions: Sequence[Sequence[Continuation]]):
        """captions: of each image, at least one, as the template writes them. An image and its captions are a row, as in training."""
        model, tokenizer = evaluated.stage.model, evaluated.tokenizer
        self._evaluated = evaluated
        self._segment_tokenizer = SegmentTokenizer(tokenizer, model.visual_tokens)
        self._captions = [
            [self._segment_tokenizer.continuation(continuation) for continuation in of_image]
            for of_image in captions
        ]
        longest = max(sum(caption.text for caption in of_image) for of_image in self._captions)
        length = BUCKET * math.ceil(longest / BUCKET)
        self._shape = RowShape(
            length,
            1,
            model.visual_tokens,
            model.vision.image_size,
            tokenizer.pad,
            evaluated.stage.data.resize,
        )
        self._images = ImageCache()
        self._step = make_evaluation_step(evaluated.model_def)

    def compute(self, images: Sequence[Image], what: str = "likelihood of captions") -> CaptionSums:
        """The sums, with an image for each of the captions. what: is said of it while it lasts.

        Raises:
            InputError: an image cannot be read.
            Preempted: a stop was requested; asked before each batch.
        """
        shape, size = self._shape, self._evaluated.batch_size

        def load(image: Image) -> np.ndarray:
            return self._images.load(image.source, shape.image_size, resize=shape.resize)

        nats, tokens = 0.0, 0
        with self._evaluated.progress.part(what, len(images), "images") as done:
            for start in range(0, len(images), size):
                if self._evaluated.should_stop():
                    raise Preempted("Stopped while measuring how likely captions are.")
                chosen = slice(start, start + size)
                rows = []
                for image, captions in zip(images[chosen], self._captions[chosen], strict=True):
                    writer = RowWriter(shape, load)
                    segment = self._segment_tokenizer.prefix((image,))
                    prefix, error = writer.write(segment)
                    if error is not None:
                        raise InputError(f"An image cannot be used: {error}.")
                    for caption in captions:
                        writer.write(caption, prefix=prefix, start=len(segment.tokens))
                    rows.append(writer.row)
                read = len(rows)
                rows += [Row.empty(shape)] * (size - read)
                loss = self._step(self._evaluated.params, stack(rows)).loss
                nats, tokens = nats + float(loss.total), tokens + int(loss.count)
                done(read)
        return CaptionSums(nats, tokens, sum(map(len, self._captions)))
