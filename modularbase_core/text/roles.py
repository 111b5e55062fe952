"""Who speaks at each token of a conversation, read back from its control tokens.

What people write cannot forge them (see `text.controls`), so a conversation kept as tokens is kept whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from modularbase_core.text.controls import Controls


@dataclass(slots=True)
class Spoken:
    """One message as token ids. first: where they begin among those of the conversation. closed: its end was seen."""

    role: str
    token_ids: list[int] = field(default_factory=list)
    first: int = 0
    closed: bool = False


class Roles:
    """Follows a conversation token by token. role: who speaks at the next token, empty between messages."""

    def __init__(self, controls: Controls) -> None:
        # the longest first: one template's opening may end like another's
        self._openings = sorted(controls.opening.items(), key=lambda one: -len(one[1]))
        self._closings = controls.closing
        self._longest = max(len(ids) for ids in (*controls.opening.values(), *controls.closing.values()))
        around = (*controls.opening.values(), *controls.closing.values())
        self._ends = {ids[-1] for ids in around if ids}
        self._last: tuple[int, ...] = ()
        self.role = ""

    def follow_all(self, token_ids: Sequence[int]) -> list[tuple[int, str]]:
        """Take more tokens; return where among them somebody else begins to speak, or nobody: (place, role)."""
        changes: list[tuple[int, str]] = []
        if self._ends.isdisjoint(token_ids):
            self._last = (*self._last, *token_ids[-self._longest :])[-self._longest :]
            return changes
        for place, token_id in enumerate(token_ids):
            before = self.role
            self.follow(token_id)
            if self.role != before:
                changes.append((place, self.role))
        return changes

    def follow(self, token_id: int) -> tuple[str, int]:
        """Take one more token; return who speaks after it, and how many tokens up to it are no content.

        0: the token is content, of the role that is told, if any. Else a message ended or began with it.
        """
        self._last = (*self._last, token_id)[-self._longest :]
        if token_id not in self._ends:
            return self.role, 0
        for role, opening in self._openings:
            if opening and self._last[-len(opening) :] == opening:
                self.role = role
                return role, len(opening)
        closing = self._closings.get(self.role, ())
        if closing and self._last[-len(closing) :] == closing:
            self.role = ""
            return "", len(closing)
        return self.role, 0

    def rewind(self, role: str, last: Sequence[int]) -> None:
        """Go on from where `role` spoke after the tokens `last`."""
        self.role, self._last = role, tuple(last[max(0, len(last) - self._longest) :])


def spoken(token_ids: Iterable[int], controls: Controls) -> list[Spoken]:
    """Return the messages in a conversation's tokens; the last one may be open."""
    roles = Roles(controls)
    messages: list[Spoken] = []
    current: Spoken | None = None
    for place, token_id in enumerate(token_ids):
        before = roles.role
        role, apart = roles.follow(token_id)
        if not apart:
            if current is not None:
                current.token_ids.append(token_id)
            continue
        if current is not None:
            del current.token_ids[len(current.token_ids) - (apart - 1) :]
            current.closed = not role and before == current.role
        current = Spoken(role, first=place + 1) if role else None
        if current is not None:
            messages.append(current)
    return messages


def open_role(messages: Sequence[Spoken]) -> str:
    """Return who was cut short, empty where the last message is whole."""
    return messages[-1].role if messages and not messages[-1].closed else ""
