"""The chat template: how messages become token ids.

Control tokens are inserted by id, never parsed out of what people type, so that no user can forge a turn. Unless a
base brings a template of its own: `<|begin|>`, then for each message `<|role|>` content `<|end|>`; an answer begins
after `<|assistant|>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from modularbase_core.errors import InputError, nearest
from modularbase_core.sdk.template import Around, ChatTemplate

if TYPE_CHECKING:
    from modularbase_core.text.tokenizer import Tokenizer

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CONTROL_TOKENS: Final = (BEGIN, END, *ROLES.values())
OURS: Final = ChatTemplate(
    begin=BEGIN,
    system="",
    roles={role: Around(token, END) for role, token in ROLES.items()},
    document=Around(BEGIN, END),
    stops=(END,),
)
"""The template of a base that brings none."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one role said.

    Raises InputError on an unknown role, and on empty content from any role but the assistant.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(
                f"a message has the role {self.role!r}; use one of {', '.join(ROLES)}{nearest(self.role, ROLES)}"
            )
        if self.role != "assistant" and not self.content.strip():
            raise InputError(f"the {self.role} message is empty; write something in it")


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids, and where in them the content of the last user message lies."""

    token_ids: list[int]
    question: tuple[int, int]
    """First and one past the last index into `token_ids`; routing reads the hidden states there."""


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, generate: bool) -> Rendered:
    """Turn a whole conversation into token ids, with `generate` up to where the answer begins.

    Raises InputError unless the order is: perhaps one system message, then user and assistant by turns,
    a user first and, to generate, a user last.
    """
    _check_order(messages, generate=generate)
    controls = tokenizer.controls
    token_ids, question = [*controls.begin, *(() if messages[0].role == "system" else controls.system)], (0, 0)
    for message in messages:
        start, end = _append(token_ids, message, tokenizer)
        if message.role == "user":
            question = (start, end)
    if generate:
        token_ids.extend(controls.opening["assistant"])
    return Rendered(token_ids, question)


def render_turn(message: Message, tokenizer: Tokenizer, *, closing: Sequence[int]) -> Rendered:
    """Turn the next user message of a running conversation into the ids that follow what is in the cache.

    closing: what closes the message that the cache ends in. After every answer that is the answer's: the last token
    sampled is not in the cache yet, and one that was cut short never had an end. The same ids as `render` of the
    whole, less those already there.
    """
    if message.role != "user":
        raise InputError(f"the next message is from the {message.role}; a turn begins with a user message")
    controls = tokenizer.controls
    token_ids = [*closing]
    question = _append(token_ids, message, tokenizer)
    token_ids.extend(controls.opening["assistant"])
    return Rendered(token_ids, question)


def _append(token_ids: list[int], message: Message, tokenizer: Tokenizer) -> tuple[int, int]:
    token_ids.extend(tokenizer.controls.opening[message.role])
    start = len(token_ids)
    token_ids.extend(tokenizer.encode(message.content))
    end = len(token_ids)
    token_ids.extend(tokenizer.controls.closing[message.role])
    return start, end


def _check_order(messages: Sequence[Message], *, generate: bool) -> None:
    skipped = 1 if messages and messages[0].role == "system" else 0
    if len(messages) == skipped:
        raise InputError("the conversation has no user message; add one")
    for i, message in enumerate(messages[skipped:]):
        expected = ("user", "assistant")[i % 2]
        if message.role != expected:
            raise InputError(
                f"message {skipped + i + 1} is from the {message.role} where the {expected} is due; after an optional "
                "system message, user and assistant take turns"
            )
    if generate and messages[-1].role != "user":
        raise InputError("the last message is from the assistant; add a user message to be answered")
