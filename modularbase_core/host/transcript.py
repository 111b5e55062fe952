"""What was said in a session, read back from its tokens, with the place of each message among them.

Its tokens are the whole truth; reading them takes the tokenizer of the base that it was held with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modularbase_core.config import EngineConfig
from modularbase_core.context.cold import ColdStore
from modularbase_core.errors import SessionError
from modularbase_core.host.session_values import HeldWith, read_base, read_state
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.resolve import line_up
from modularbase_core.sdk.architecture import PAGE_TOKENS, BaseArchitecture
from modularbase_core.sdk.manifest import WEIGHTS_FILE
from modularbase_core.sdk.template import read_template
from modularbase_core.text.roles import spoken
from modularbase_core.text.template import OURS
from modularbase_core.text.tokenizer import Tokenizer

GONE: Final = "[... {} tokens that are no longer kept ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One message. token: absolute index of its first token; tokens: how many are kept. whole: its end was reached."""

    role: str
    text: str
    token: int
    tokens: int
    whole: bool


def transcript(store: ColdStore, tokenizer: Tokenizer) -> list[Said]:
    """Return the messages of a session in order, but for what the system says by itself."""
    token_ids: list[int] = []
    gaps: list[tuple[int, int]] = []  # (place in token_ids, tokens that were dropped before it)
    end = 0
    for entry in store.entries():
        first = entry.index * PAGE_TOKENS
        if first > end:
            gaps.append((len(token_ids), first - end))
        token_ids += entry.tokens[entry.tokens >= 0].tolist()
        end = first + int((entry.tokens >= 0).sum())
    token_ids += read_state(store, end).pending
    controls = tokenizer.controls
    messages = spoken(token_ids, controls)
    default = spoken([*controls.begin, *controls.system], controls)
    if messages and default and (messages[0].role, messages[0].token_ids) == ("system", default[0].token_ids):
        messages = messages[1:]
    return [
        Said(
            role=one.role,
            text=_text(one.token_ids, one.first, gaps, tokenizer),
            token=_position(one.first, gaps),
            tokens=len(one.token_ids),
            whole=one.closed,
        )
        for one in messages
        if one.token_ids or one.role == "assistant"
    ]


def base_for(catalog: Catalog, held: HeldWith, *, exactly: bool = False) -> InstalledPack | None:
    """Return the installed base that a session was held with, or unless `exactly` another version of it."""
    versions = [one for one in catalog.versions(held.id) if one.manifest.type == "base"]
    for one in versions:
        if (one.manifest.version, one.manifest.files.get(WEIGHTS_FILE, "")) == (held.version, held.digest):
            return one
    alike = [one for one in versions if one.manifest.version == held.version]
    return None if exactly else next(iter([*alike, *versions]), None)


def reading_base(catalog: Catalog, config: EngineConfig, store: ColdStore) -> tuple[BaseArchitecture, Tokenizer, str]:
    """Return what reads a session: its base's architecture and tokenizer, and a note where that is another version.

    Raises SessionError where its base is not installed.
    """
    held, note = read_base(store), ""
    base = line_up(catalog, config.base).base if held is None else base_for(catalog, held)
    if base is None:
        raise SessionError(
            f"session {store.name!r} was held with the base {held}, which is not installed; install it to read what "
            "was said"
        )
    if held is not None and base.manifest.version != held.version:
        note = (
            f"session {store.name!r} was held with {held} but {base.id} {base.manifest.version} is installed; "
            "its text may be wrong"
        )
    network = base.manifest.network
    assert isinstance(network, BaseArchitecture)
    template = read_template(base.pack.template) if base.pack.template.exists() else OURS
    return network, Tokenizer.load(base.pack.tokenizer, template), note


def _position(place: int, gaps: Sequence[tuple[int, int]]) -> int:
    return place + sum(missing for _, missing in gaps[: bisect_right(gaps, place, key=lambda gap: gap[0])])


def _text(token_ids: list[int], first: int, gaps: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> str:
    pieces, begun = [], 0
    for place, missing in gaps:
        if first < place < first + len(token_ids):
            pieces += [tokenizer.decode(token_ids[begun : place - first]), GONE.format(missing)]
            begun = place - first
    return "".join([*pieces, tokenizer.decode(token_ids[begun:])])
