"""The template of a model that knows no turns."""

from collections.abc import Sequence

from mmjax.data.examples import Special, Text
from mmjax.data.template import Branch, Template, Turn, joined, without_loss
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import InputError


class Continuation(Template):
    """Texts as they stand, one behind the other; the model goes on with them. bos stands before them where the model has one of its own,
    and not only a token that separates texts."""

    def __init__(self, tokenizer: Tokenizer):
        self._begins = tokenizer.bos != tokenizer.eos

    def question(self, question: str, answer: str) -> Branch:
        return (*self.prompt(question), Text(answer, loss=True), Special("eos", loss=True))

    def prompt(self, question: str) -> Branch:
        return self.conversation([Turn("user", (Text(question),))])

    def conversation(self, turns: Sequence[Turn]) -> Branch:
        if any(turn.role == "system" for turn in turns):
            raise InputError("There is no chat template, so that nothing can be said as the system; put it before the text.")
        begin = (Special("bos"),) if self._begins else ()
        return joined((*begin, *(part for turn in turns for part in without_loss(turn.content))))
