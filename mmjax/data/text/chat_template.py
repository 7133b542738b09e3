"""The chat template that a published tokenizer brings along, as a `Template`."""

import dataclasses
from collections.abc import Sequence

from mmjax.data.examples import Continuation, Image, Template, Text, Turn
from mmjax.data.text.chat_rendering import Renderer
from mmjax.data.text.huggingface_tokenizer import HuggingFaceTokenizer
from mmjax.data.text.loss_mask import ANSWER, ChatFormat, Rendering
from mmjax.errors import InputError

_QUESTION = Turn("user", (Text("question"),))


class ChatTemplate(Template):
    """A published model's own format: the tokens of `apply_chat_template` of transformers.

    Loss falls on what the template encloses in {% generation %}. A template without this: on all that follows the generation prompt, up
    to and with the special token that ends the turn. Texts are cut where the loss begins, so that a prompt has the same tokens with and
    without its answer; transformers, which tokenises across, has others where an answer begins with a line feed.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, labels: bool = True):
        """
        Args:
            labels: whether something is to be learned. Else nothing carries loss, nothing is cut, and an answer may end without a special
                token: what the model was taught to end with is then for others to say.

        Raises:
            InputError: the tokenizer has no chat template, or one that cannot be used.
        """
        if tokenizer.chat_template is None and tokenizer.chat_templates:
            raise InputError(
                f"{tokenizer.path} comes with the chat templates {', '.join(tokenizer.chat_templates)}, none of which is named default, so "
                "that none is meant where no other is asked for; choose another template, such as 'vicuna_v1'."
            )
        if tokenizer.chat_template is None:
            raise InputError(
                f"{tokenizer.path} comes with no chat template; choose another template, such as 'vicuna_v1'."
            )
        renderer = Renderer(tokenizer.chat_template, tokenizer.names, where=str(tokenizer.path))
        self._chat = _probed(ChatFormat(renderer, tokenizer, labels))
        self.stop = self._chat.stop or "eos"

    def __reduce__(self) -> tuple[type["ChatTemplate"], tuple[HuggingFaceTokenizer, bool]]:
        # Compiled templates cannot be pickled.
        return type(self), (self._chat.tokenizer, self._chat.labels)

    def question(self, question: str, answer: str) -> Continuation:
        return self.conversation(
            [Turn("user", (Text(question),)), Turn("assistant", (Text(answer),))]
        )

    def prompt(self, question: str) -> Continuation:
        return self.conversation([Turn("user", (Text(question),))])

    def conversation(self, turns: Sequence[Turn]) -> Continuation:
        """See `Template.conversation`.

        Raises:
            InputError: the template refuses the conversation, or does not write what a turn says, or writes it twice.
            SampleError: the template rewrites some text, or decides by it what to write.
        """
        rendering = Rendering(self._chat, turns, prompt=not turns or turns[-1].role != "assistant")
        rendering.check_contents()
        return rendering.continuation()


def _probed(chat: ChatFormat) -> ChatFormat:
    """What small conversations tell of a template: how it wants contents and images, and what it writes around an answer."""
    # Contents: as texts if it takes them, else as lists of parts.
    in_parts = dataclasses.replace(chat, in_parts=True)
    try:
        Rendering(chat, [_QUESTION, ANSWER], prompt=False)
    except InputError as error:
        try:
            Rendering(in_parts, [_QUESTION, ANSWER], prompt=False)
        except InputError:
            raise error from None
        chat = in_parts
    # Images: does it write the tokenizer's token of an image where it is given one as a part?
    specials, image = chat.tokenizer.special_tokens.items(), chat.tokenizer.image
    name = next((name for name, index in specials if index == image), "")
    with_images = dataclasses.replace(chat, image=name)
    asked_of_image = Turn("user", (Image(b""), *_QUESTION.content))
    try:
        Rendering(with_images, [asked_of_image, ANSWER], prompt=False)
        chat = with_images
    except InputError:
        pass
    # The header before an answer, and the token that ends it.
    whole = Rendering(chat, [_QUESTION, ANSWER], prompt=False)
    between = whole.text[whole.turns[0].end : whole.turns[1].start]
    asked, silent = (Rendering(chat, [_QUESTION], prompt=prompt) for prompt in (True, False))
    header = asked.text[asked.turns[0].end :]
    # Asked for a prompt, it writes nothing more, although it does so before an answer: not a space alone, which answers begin with.
    writes_header = asked.text != silent.text or not between.removeprefix(header).strip()
    end = whole.end_of(1)
    if end is None and chat.labels:
        raise chat.unusable(
            "ends what the assistant says with no special token, so that a model could not learn where to stop; train it with another "
            "one: --config.stages.NAME.data.template=vicuna_v1, or plain, short_prompt or llama3"
        )
    return dataclasses.replace(
        chat,
        header=header if writes_header else between.rstrip(),
        writes_header=writes_header,
        stop=(end.special if end is not None else None) or "",
    )
