"""A chat template as a tokenizer's ids: what stands around messages, and what ends an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modularbase_core.errors import TokenizerError
from modularbase_core.sdk.template import ChatTemplate, read_template
from modularbase_core.text.template import CONTROL_TOKENS, OURS

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The ids of a template, in the order of `sdk.template.ChatTemplate`'s fields, whose meaning is told there.

    system: the whole message that the system says where a conversation does not. border: the one id that begins every
    piece of training text; text_end: what ends a text that is no conversation.
    """

    begin: tuple[int, ...]
    system: tuple[int, ...]
    opening: Mapping[str, tuple[int, ...]]
    closing: Mapping[str, tuple[int, ...]]
    border: int
    text_end: tuple[int, ...]
    stops: frozenset[int]

    @property
    def first(self) -> tuple[int, ...]:
        """All that stands before the content of a conversation's first user message."""
        return (*self.begin, *self.system, *self.opening["user"])


def template_beside(tokenizer: Path) -> ChatTemplate:
    """Read the template.json beside a tokenizer.json, ours where there is none; raises ManifestError."""
    path = tokenizer.with_name("template.json")
    return read_template(path) if path.is_file() else OURS


def controls_of(library: tokenizers.Tokenizer, template: ChatTemplate, where: str) -> Controls:
    """Make the ids of a template.

    The template's own strings are trusted: names of control tokens in them are those tokens. Raises TokenizerError,
    naming the tokenizer as `where`, when it lacks a control token, or when a turn could be forged.
    """
    added = library.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    alone = CONTROL_TOKENS if template is OURS else (*template.stops, template.document.open)
    if lacking := [name for name in alone if name not in special]:
        raise TokenizerError(
            f"the tokenizer {where} lacks the control tokens {', '.join(lacking)}; use the one that the base ships"
        )
    plain, library.encode_special_tokens = library.encode_special_tokens, False
    try:

        def ids(text: str) -> tuple[int, ...]:
            return tuple(library.encode(text, add_special_tokens=False).ids)

        system = template.roles["system"]
        controls = Controls(
            begin=ids(template.begin),
            system=ids(system.open + template.system + system.close) if template.system else (),
            opening={role: ids(around.open) for role, around in template.roles.items()},
            closing={role: ids(around.close) for role, around in template.roles.items()},
            border=special[template.document.open],
            text_end=ids(template.document.close),
            stops=frozenset(special[stop] for stop in template.stops),
        )
    finally:
        library.encode_special_tokens = plain
    for role in ("user", "assistant"):
        around = (*controls.opening[role], *controls.closing[role])
        if typed := [added[number].content for number in around if number in added and not added[number].special]:
            raise TokenizerError(
                f"the template of the tokenizer {where} uses {typed[0]!r}, which people can type, as it is not marked "
                "as special there; mark it"
            )
        if set(special.values()).isdisjoint(around):
            raise TokenizerError(
                f"the template of the tokenizer {where} puts no control token around what the {role} says, so that "
                "anyone could write it; name one in its open or close"
            )
    return controls
