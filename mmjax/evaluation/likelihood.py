"""How likely a model finds given captions of given pictures: the loss of training, summed over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmjax.data.encoding import Encoded, Encoder
from mmjax.data.examples import Image
from mmjax.data.images import ImageCache
from mmjax.data.layout import Row, RowShape, RowWriter, stack
from mmjax.data.templates import Branch
from mmjax.errors import InputError, Preempted
from mmjax.evaluation.task import Subject
from mmjax.generate import BUCKET
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
    """Measures a model on captions; the pictures that they stand beside may be exchanged. All calls share one compiled program."""

    def __init__(self, subject: Subject, captions: Sequence[Sequence[Branch]]):
        """captions: of each picture, at least one, as the template writes them. A picture and its captions are a row, as in training."""
        model, tokenizer = subject.stage.model, subject.tokenizer
        self._subject = subject
        self._encoder = Encoder(tokenizer, model.visual_tokens)
        self._captions = [[self._encoder.branch(branch) for branch in of_picture] for of_picture in captions]
        longest = max(sum(piece.text for piece in of_picture) for of_picture in self._captions)
        length = BUCKET * math.ceil(longest / BUCKET)
        self._shape = RowShape(length, 1, model.visual_tokens, model.vision.image_size, tokenizer.pad, subject.stage.data.resize)
        self._pictures = ImageCache()
        self._step = make_evaluation_step(subject.structure)

    def measure(self, pictures: Sequence[Image]) -> CaptionSums:
        """The sums, with a picture for each of the captions.

        Raises:
            InputError: a picture cannot be read.
            Preempted: a stop was requested; asked before each batch.
        """
        nats, tokens, size = 0.0, 0, self._subject.batch_size
        for start in range(0, len(pictures), size):
            if self._subject.should_stop():
                raise Preempted("Stopped while measuring how likely captions are.")
            chosen = slice(start, start + size)
            rows = [self._row(*one) for one in zip(pictures[chosen], self._captions[chosen], strict=True)]
            rows += [Row.empty(self._shape)] * (size - len(rows))
            loss = self._step(self._subject.params, stack(rows)).loss
            nats, tokens = nats + float(loss.total), tokens + int(loss.count)
        return CaptionSums(nats, tokens, sum(map(len, self._captions)))

    def _row(self, picture: Image, captions: Sequence[Encoded]) -> Row:
        writer = RowWriter(self._shape, lambda image: self._pictures.load(image.source, self._shape.image_size, resize=self._shape.resize))
        piece = self._encoder.prefix((picture,))
        prefix, error = writer.write(piece)
        if error is not None:
            raise InputError(f"A picture cannot be used: {error}.")
        for caption in captions:
            writer.write(caption, prefix=prefix, start=len(piece.tokens))
        return writer.row
