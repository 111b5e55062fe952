"""Pages that conversations begin with alike, kept to be shared: found by a chained hash from token 0.

Decides which page stands for which prefix, under which weights and routes, and which one goes first. Counting holders
is `pool`'s; what enters, what is asked for and the copying of what can be shared only in part are the caller's.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from modularbase_core.context.pool import PagePool
from modularbase_core.sdk.architecture import PAGE_TOKENS

ROOT: Final = b""
"""The parent of a first page."""

Routes = Sequence[tuple[int, bytes]]
"""Who made the fusion part: (one past its last token, digest of the route) of each route in turn, from token 0 on.

The digest says all that fusion depends on beside the prefix: the packs, their weights in the route, their files.
"""


@dataclass(frozen=True, slots=True)
class Match:
    """Pages of a prefix, which the caller holds from now on and frees.

    pages: full pages from token 0 on. whole: how many of them may be read in all their parts; of the others fusion
    went by other routes, so only hidden states and understanding hold: they are to be copied, not attached.
    """

    pages: tuple[int, ...]
    whole: int


def chain(parent: bytes, tokens: Sequence[int], regime: bytes) -> bytes:
    """Return the name, 16 bytes, of the page of `tokens` (int32) after the prefix whose name is `parent`.

    regime: digest of what else decides its content: weights, kernel regime, the rule of the visible list.
    BLAKE2b (RFC 7693) over all that came before, as vLLM names its blocks for prefix caching.
    """
    return _digest(parent, regime, struct.pack(f"<{len(tokens)}i", *tokens))


class PrefixCache:
    """Holds at most `page_limit` pages of `pool`; the least recently used leave first, none before what follows it.

    The same tokens after other routes are a page of their own, so that packs do not push each other out. Whoever needs
    pages goes before it: a pool that is short takes back what nobody else holds.
    """

    def __init__(self, pool: PagePool, page_limit: int) -> None:
        self._pool, self._page_limit = pool, page_limit
        pool.when_short = self.give_back
        # least recently used first; what follows a page always stands before it, so the first one is a leaf
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._variants: dict[bytes, dict[bytes, None]] = {}  # name of a page: keys of its entries, one a history

    @property
    def page_count(self) -> int:
        """Pages held."""
        return len(self._entries)

    def match(self, token_ids: Sequence[int], regime: bytes, routes: Routes) -> Match:
        """Return the longest cached prefix of `token_ids`, in full pages, and share its pages with the caller.

        At least one token remains to be computed. routes: as far as they are known; from there on nothing is whole.
        """
        whole, same, deepest = 0, ROOT, ROOT
        full = max(0, len(token_ids) - 1) // PAGE_TOKENS * PAGE_TOKENS
        for name, key in _names(token_ids[:full], regime, routes):
            if name not in self._variants:
                break
            if key in self._variants[name]:
                whole, same, deepest = whole + 1, key, key
            else:
                deepest = next(reversed(self._variants[name]))
        pages = self._use(deepest)
        pages[:whole] = self._use(same)
        self._pool.share(pages)
        return Match(tuple(pages), whole)

    def insert(self, token_ids: Sequence[int], page_ids: Sequence[int], regime: bytes, routes: Routes) -> None:
        """Hold those of `page_ids`, pages of `token_ids` from token 0 on, that are full, fused and not yet known.

        From now on nobody may write them. Lists with recalled pages are never shared: the caller gives only pages
        below the first block that had recalled or dropped pages, thus within the trained window. routes: up to the
        last fused token; pages beyond are left out. Of more pages than `page_limit` the first ones are held.
        """
        parent = ROOT
        for page, (name, key) in zip(page_ids, _names(token_ids, regime, routes), strict=False):
            if not key:
                break
            if key not in self._entries:
                self._pool.share([page])
                self._entries[key] = _Entry(page, name, parent)
                self._variants.setdefault(name, {})[key] = None
                if parent:
                    self._entries[parent].children[key] = None
            parent = key
        self._use(parent)
        while len(self._entries) > self._page_limit:
            self._drop(next(iter(self._entries)))

    def give_back(self, count: int) -> int:
        """Free up to `count` pages that nobody else holds; return how many, fewer only if there are no more.

        Pages that sequences hold stay known, unless they follow one that has to go.
        """
        freed = 0
        for with_followers in (False, True):
            for key in list(self._entries):
                if freed >= count:
                    return freed
                entry = self._entries[key]
                # free followers stood before it and are gone: dropping it frees one page, never more
                if self._pool.holders(entry.page) == 1 and (with_followers or not entry.children):
                    self._drop(key)
                    freed += 1
        return freed

    def clear(self) -> None:
        """Forget every prefix, as when the weights change; sequences keep the pages that they hold."""
        self._pool.free(entry.page for entry in self._entries.values())
        self._entries.clear()
        self._variants.clear()

    def _use(self, key: bytes) -> list[int]:
        """Make an entry and all before it the most recently used; return their pages, the first page first."""
        pages = []
        while key:
            self._entries.move_to_end(key)
            pages.append(self._entries[key].page)
            key = self._entries[key].parent
        return pages[::-1]

    def _drop(self, key: bytes) -> None:
        """Forget an entry and all that follow it."""
        dropped = [key]
        for each in dropped:  # it grows on the way
            entry = self._entries.pop(each)
            dropped.extend(entry.children)
            self._variants[entry.name].pop(each)
            if not self._variants[entry.name]:
                del self._variants[entry.name]
            if entry.parent in self._entries:
                del self._entries[entry.parent].children[each]
            self._pool.free([entry.page])


@dataclass(slots=True)
class _Entry:
    """A page under its key, the chain over tokens and routes; name: over tokens alone; parent: a key."""

    page: int
    name: bytes
    parent: bytes
    children: dict[bytes, None] = field(default_factory=dict)


def _names(token_ids: Sequence[int], regime: bytes, routes: Routes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and key of each full page; the key is empty where the routes do not reach."""
    name = key = ROOT
    for start in range(0, len(token_ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        name = chain(name, token_ids[start : start + PAGE_TOKENS], regime)
        made_by = _made_by(routes, start)
        key = _digest(key, name, *made_by) if made_by else b""
        yield name, key


def _made_by(routes: Routes, start: int) -> list[bytes]:
    """Return end and digest of each stretch of the page at `start`; nothing if its last token is not fused.

    Neighbours of one route are one stretch: where a turn ended does not matter, only who answered.
    """
    stretches: list[bytes] = []
    done = 0
    for end, route in routes:
        until = min(end - start, PAGE_TOKENS)
        if until > done:
            if stretches and stretches[-1] == route:
                del stretches[-2:]
            stretches += [bytes([until]), route]
            done = until
    return stretches if done == PAGE_TOKENS else []


def _digest(*parts: bytes) -> bytes:
    # each with its length: no two lists of parts read alike
    return blake2b(b"".join(struct.pack("<I", len(part)) + part for part in parts), digest_size=16).digest()
