"""Which turns of a conversation stay when it no longer fits: the least important go first.

How important a turn is, plugins and `builtin` say; the system message and the last question always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modularbase_core.text.template import Message

Importance = Callable[[str, str, int], float]
"""Called with a message's role, its text, and how many turns ago it was."""


def shorten(
    messages: Sequence[Message], size: Callable[[Sequence[Message]], int], limit: int, importance: Importance
) -> list[Message]:
    """Return `messages` without so many turns that their `size` is within `limit`, if it can be.

    messages: as the template takes them, a question last. A turn, a user's message and its answer, is as important as
    the more important of the two; of equally important ones the oldest goes.
    """
    first = 1 if messages[0].role == "system" else 0
    turns = [messages[index : index + 2] for index in range(first, len(messages) - 1, 2)]
    total = size(messages)
    if total <= limit:
        return list(messages)
    worth = [
        max(importance(message.role, message.content, len(turns) - index) for message in turn)
        for index, turn in enumerate(turns)
    ]
    dropped = set()
    for index in sorted(range(len(turns)), key=lambda index: (worth[index], index)):
        if total <= limit:
            break
        dropped.add(index)
        total -= size(turns[index])
    kept = [message for index, turn in enumerate(turns) if index not in dropped for message in turn]
    return [*messages[:first], *kept, messages[-1]]
