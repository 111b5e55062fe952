"""A record: one training document, of whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass

Message = dict[str, str]
"""role and content."""


@dataclass(frozen=True, slots=True)
class Record:
    """One training document: either plain `text` or a list of `messages`."""

    text: str | None
    messages: tuple[Message, ...]
    language: str
    source: str

    @property
    def whole(self) -> str:
        """All that it says, a message a line."""
        return self.text if self.text is not None else "\n".join(one["content"] for one in self.messages)
