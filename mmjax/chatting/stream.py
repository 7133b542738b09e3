"""Text that appears while its tokens are produced."""

from collections.abc import Callable, Iterable

REPLACEMENT = "�"


class TextStream:
    """Turns tokens into text, as soon as it is certain.

    A character may consist of several tokens, and what a token reads as may depend on the one before it. So text is held back while it ends
    in the middle of a character, and tokens are decoded together with those that the last piece of text came from.
    """

    def __init__(self, decode: Callable[[Iterable[int]], str]):
        """decode: of a tokenizer; bytes that are no character become U+FFFD."""
        self._decode = decode
        self._shown: list[int] = []
        self._held: list[int] = []

    def add(self, token: int) -> str:
        """What can be shown now that this token is known; often nothing."""
        self._held.append(token)
        text = self._pending()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._shown, self._held = self._held, []
        return text

    def end(self) -> str:
        """What was held back, when nothing follows. Half a character is left out."""
        text = self._pending().rstrip(REPLACEMENT)
        self._shown, self._held = [], []
        return text

    def _pending(self) -> str:
        return self._decode([*self._shown, *self._held])[len(self._decode(self._shown)) :]
