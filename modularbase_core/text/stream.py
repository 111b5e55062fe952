"""Turn the bytes of tokens into text that never has to be taken back.

Holds back a character that is not whole yet and whatever could be the beginning of a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one answer, piece by piece.

    The answer ends at the stop string that is complete first; where one character completes several, the longest
    counts. So where the text is cut does not depend on how it is split into tokens.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        assert all(stops), "a stop string is empty"
        self._stops = tuple(stops)
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._held = ""
        self.stop: str | None = None
        """The stop string that ended the answer; it is not part of the text."""

    def feed(self, data: bytes) -> str:
        """Take the bytes of the next token; return the text that is now certain, perhaps none.

        Bytes that can be no UTF-8 become U+FFFD; a character that is only begun waits for its rest.
        """
        return self._take(self._decode(data))

    def finish(self) -> str:
        """Return what was held back, as no more comes; a character that was only begun becomes U+FFFD."""
        text = self._take(self._decode(b"", True)) + self._held
        self._held = ""
        return text

    def _take(self, text: str) -> str:
        if self.stop is not None or not text:
            return ""
        text = self._held + text  # a stop string that is under way begins in what was held back
        hits = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if hits:
            end, negative, self.stop = min(hits)
            self._held = ""
            return text[: end + negative]
        held = self._beginning(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _beginning(self, text: str) -> int:
        """Return the length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        ends = (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops))
        return next(ends, 0)
