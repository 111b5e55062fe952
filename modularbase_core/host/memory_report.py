"""What a conversation holds, hot and cold, and what of it was brought back for the last answer.

Made from a session on disk; a running conversation fills the same form from its tiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from modularbase_core.context.cold import ColdStore
from modularbase_core.context.page import PageTable
from modularbase_core.context.record import PageEntry
from modularbase_core.host.session_values import SessionState, last_token, read_state
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window
from modularbase_core.text.roles import Roles
from modularbase_core.text.tokenizer import Tokenizer


class RecalledPage(NamedTuple):
    """A page that was brought back. role: who spoke, empty where that is not known. by: what found it."""

    token: int
    role: str
    by: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """What a conversation holds.

    hot_tokens: those in the window, of a session that is not running those that it takes up again. cold_tokens: those
    on disk by form, which may be hot too. index_bytes: of memory, for finding cold pages; 0 where nothing runs.
    shared_tokens: those of its beginning that were not understood again, as another conversation began alike.
    """

    tokens: int
    hot_tokens: int
    cold_tokens: Mapping[str, int]
    bytes_on_disk: int
    limit_bytes: int
    index_bytes: int = 0
    shared_tokens: int = 0
    recalled: tuple[RecalledPage, ...] = ()

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk for each token that is kept there."""
        return self.bytes_on_disk / max(1, sum(self.cold_tokens.values()))


def report_of(store: ColdStore, tokenizer: Tokenizer, window: Window) -> MemoryReport:
    """Report on a session that is not running. window: of the base that it was held with."""
    tokens = last_token(store)
    state = read_state(store, tokens)
    return MemoryReport(
        tokens=state.told_tokens,
        hot_tokens=_hot_tokens(tokens, state, window),
        cold_tokens=store.tokens,
        bytes_on_disk=store.bytes_used,
        limit_bytes=store.limit_bytes,
        recalled=recalled_pages(store.entries(), state.recalled, tokenizer),
    )


def recalled_pages(
    entries: Iterable[PageEntry], recalled: Sequence[tuple[int, str]], tokenizer: Tokenizer
) -> tuple[RecalledPage, ...]:
    """Tell who spoke on recalled pages, and what.

    entries: a conversation's pages in their order. recalled: (first token of a page, what found it).
    """
    by = {token // PAGE_TOKENS: found for token, found in recalled}
    roles, pages = Roles(tokenizer.controls), []
    for entry in entries if by else ():
        token_ids = entry.tokens[entry.tokens >= 0].tolist()
        before = roles.role
        changes = roles.follow_all(token_ids)
        if entry.index in by:
            role = _speaker(before, changes, len(token_ids))
            text = tokenizer.decode(token_ids)
            pages.append(RecalledPage(entry.index * PAGE_TOKENS, role, by.pop(entry.index), text))
            if not by:
                break
    return tuple(pages)


def _speaker(before: str, changes: Sequence[tuple[int, str]], count: int) -> str:
    """Return who speaks most of `count` tokens. changes: (token, who speaks after it)."""
    said: Counter[str] = Counter()
    for (start, role), (end, _) in pairwise([(-1, before), *changes, (count - 1, "")]):
        if role:
            said[role] += end - start
    return said.most_common(1)[0][0] if said else ""


def _hot_tokens(tokens: int, state: SessionState, window: Window) -> int:
    recent = PageTable(window).first_recent(tokens) // PAGE_TOKENS
    pages = {*range(window.sink_tokens // PAGE_TOKENS), *range(recent, -(-tokens // PAGE_TOKENS))}
    for _, recalled in state.recalls:
        pages.update(recalled)
    held = sum(max(0, min(PAGE_TOKENS, tokens - page * PAGE_TOKENS)) for page in pages)
    return int(min(held, window.trained_tokens))
