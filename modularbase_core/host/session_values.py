"""What a session says of itself beside its pages: its base, and what it stood at after its last turn.

Decides what of it can be trusted: a process may have been killed in mid-turn, a file may come from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from modularbase_core.context.cold import ColdStore
from modularbase_core.context.tiers import BASE, STATE
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.sdk.jsonfile import shown

LARGEST_ID: Final = (1 << 31) - 1
LARGEST_TOKEN: Final = 1 << 48
_LONGEST_WORD: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWith:
    """The base that a session was held with. digest: SHA-256 of its weights, as its manifest gives it."""

    id: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.id} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What a session stood at after its last turn.

    tokens: those in the pages. pending: ids that were told but not read. recalls: (first token, pages that the tokens
    from there on see again). recalled: (first token of a page, what found it), of the last answer.
    """

    tokens: int = 0
    pending: tuple[int, ...] = ()
    recalls: tuple[tuple[int, tuple[int, ...]], ...] = ()
    recalled: tuple[tuple[int, str], ...] = ()

    @property
    def told_tokens(self) -> int:
        """All tokens of the conversation."""
        return self.tokens + len(self.pending)


def last_token(store: ColdStore) -> int:
    """Return one past the last token of the pages: all that were read, those of dropped pages too."""
    last = None
    for entry in store.entries():
        last = entry
    return 0 if last is None else last.index * PAGE_TOKENS + int((last.tokens >= 0).sum())


def read_base(store: ColdStore) -> HeldWith | None:
    """Return the base that a session was held with; None where that cannot be read."""
    with suppress(ValueError):
        return check_base(json.loads(store.meta(BASE) or b"null"))
    return None


def read_state(store: ColdStore, tokens: int) -> SessionState:
    """Return what a session of `tokens` stands at; an empty state where its process was killed in mid-turn."""
    with suppress(ValueError):
        return state_at(json.loads(store.meta(STATE) or b"null"), tokens)
    return SessionState(tokens=tokens)


def state_at(value: Any, tokens: int) -> SessionState:  # Any: whatever JSON holds
    """Return the state that JSON tells of, an empty one where it is not of `tokens`; raises as `check_state` does."""
    state = check_state(value)
    return state if state is not None and state.tokens == tokens else SessionState(tokens=tokens)


def check_base(value: Any) -> HeldWith | None:  # Any: whatever JSON holds
    """Read a base's description, None where there is none; raises ValueError, whose text is a reason."""
    if value is None:
        return None
    keys = ("id", "version", "digest")
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"the base is {shown(value)}, not an object of {', '.join(keys)}")
    for key in keys:
        if not isinstance(value[key], str) or not value[key].isprintable() or len(value[key]) > _LONGEST_WORD:
            raise ValueError(f"the base's {key} is {shown(value[key])}")
    return HeldWith(**value)


def check_state(value: Any) -> SessionState | None:  # Any: whatever JSON holds
    """Read a state, None where there is none; raises ValueError, whose text is a reason. Unknown keys may be there."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"the state is {shown(value)}, not an object")
    whole_number("the state's tokens", value.get("tokens"), LARGEST_TOKEN)
    token_ids("the state's question", value.get("question", []))
    recalls = []
    for first, pages in _pairs("recalls", value):
        if not isinstance(pages, list):
            raise ValueError(f"the state's recalls hold {shown(pages)}, not a list of pages")
        page_numbers = tuple(whole_number("a recalled page", page, LARGEST_TOKEN) for page in pages)
        recalls.append((whole_number("the state's recalls", first, LARGEST_TOKEN), page_numbers))
    recalled = []
    for token, by in _pairs("recalled", value):
        if not isinstance(by, str) or len(by) > _LONGEST_WORD:
            raise ValueError(f"the state's recalled pages were found by {shown(by)}")
        recalled.append((whole_number("the state's recalled", token, LARGEST_TOKEN), by))
    return SessionState(
        tokens=value["tokens"],
        pending=tuple(token_ids("the state's pending", value.get("pending", []))),
        recalls=tuple(recalls),
        recalled=tuple(recalled),
    )


def whole_number(what: str, value: object, largest: int) -> int:
    """Return a whole number from 0 to `largest`; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise ValueError(f"{what} is {shown(value)}, not a whole number from 0 on")
    return value


def token_ids(what: str, value: object) -> list[int]:
    """Return a list of token ids; raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{what} is {shown(value)}, not a list of token ids")
    return [whole_number(f"{what}, a token id,", one, LARGEST_ID) for one in value]


def _pairs(key: str, state: dict[str, Any]) -> Iterator[tuple[Any, Any]]:  # Any: whatever JSON holds
    pairs = state.get(key, [])
    if not isinstance(pairs, list):
        raise ValueError(f"the state's {key} is {shown(pairs)}, not a list")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"the state's {key} hold {shown(pair)}, not two values")
        yield pair[0], pair[1]
