"""Pool, page tables and prefix cache together against plain dicts: what every slot holds, and who holds every page.

The model names a prefix by its tokens themselves, so a page found under a wrong name would be seen as wrong content.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from modularbase_core.context.page import PageTable
from modularbase_core.context.pool import PagePool
from modularbase_core.context.prefix import PrefixCache
from modularbase_core.errors import BudgetError
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window

WINDOW = Window(trained_tokens=112, block_tokens=32, recent_tokens=48, sink_tokens=32)
FIRST_DROPPED = 96
"""The first block of WINDOW that does not see every token before it; pages from here on are not shared."""
PAGES, CACHED = 24, 9
REGIME = b"weights"

Stretch = tuple[int, int]
"""A token of the text and how many times it comes."""
History = tuple[tuple[int, bytes], ...]
"""(token, route) of a prefix."""

texts = st.lists(st.tuples(st.integers(0, 1), st.sampled_from((1, 15, 16, 17, 48))), min_size=1, max_size=3)
routes = st.sampled_from((b"chat", b"code"))
cuts = st.integers(1, 12).map(lambda halves: halves * PAGE_TOKENS // 2)


@dataclass
class Conversation:
    """history: what every token was and which route it took. floor: tokens below it cannot be taken back."""

    table: PageTable = field(default_factory=lambda: PageTable(WINDOW))
    history: list[tuple[int, bytes]] = field(default_factory=list)
    floor: int = 0

    def pages(self) -> Iterator[tuple[int, int]]:
        """(absolute index, page) of what is held."""
        held = set(self.table.page_ids)
        for index in range(-(-len(self.history) // PAGE_TOKENS)):
            try:
                page = self.table.slots(index * PAGE_TOKENS, 1)[0] // PAGE_TOKENS
            except KeyError:
                continue  # out of sight
            assert page in held
            yield index, page

    def shareable(self) -> list[int]:
        """The full pages from token 0 on whose tokens saw all before them."""
        full = min(len(self.history), FIRST_DROPPED) // PAGE_TOKENS
        return [page for number, (index, page) in enumerate(self.pages()) if number == index < full]


class Conversations(RuleBasedStateMachine):
    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool("hot pages", PAGES)
        self.cache = PrefixCache(self.pool, CACHED)
        self.conversations: dict[int, Conversation] = {}
        self.told: list[History] = [((0, b"chat"),) * 50]
        self.understood: dict[int, tuple[int, ...]] = {}  # slot: the tokens up to its own
        self.fused: dict[int, History] = {}  # slot: tokens and routes up to its own
        self.kept: dict[History, int] = {}  # the cache: prefix in full pages: its last page, least recent first

    @rule(target=live, text=texts, route=routes)
    def begin(self, text: Sequence[Stretch], route: bytes) -> int:
        return self.adopt(spelt(text, route))

    @rule(target=live, told=st.integers(0, 20), cut=cuts, text=texts, route=routes)
    def branch_off(self, told: int, cut: int, text: Sequence[Stretch], route: bytes) -> int:
        """Begin as an earlier one did, with the routes of its time."""
        return self.adopt([*self.told[told % len(self.told)][:cut], *spelt(text, route)])

    @rule(target=live, told=st.integers(0, 20), cut=cuts, turned=cuts, route=routes)
    def answer_anew(self, told: int, cut: int, turned: int, route: bytes) -> int:
        """Begin as an earlier one did, the first tokens by a route of their own."""
        history = self.told[told % len(self.told)][:cut]
        return self.adopt([*[(token, route) for token, _ in history[:turned]], *history[turned:]])

    def adopt(self, history: Sequence[tuple[int, bytes]]) -> int:
        """Begin with what is cached of a text: attach what is whole, copy what is only understood."""
        name, one = len(self.told), Conversation()
        self.told.append(tuple(history))
        self.conversations[name] = one
        match = self.cache.match(spelling(history), REGIME, ends(history))
        self.check_match(history, match.pages, match.whole)
        tokens = match.whole * PAGE_TOKENS
        one.table.attach(match.pages[: match.whole])
        one.table.advance(tokens)
        one.history += history[:tokens]
        one.floor = tokens
        copied = match.pages[match.whole :]
        if self.reserve(one, len(copied) * PAGE_TOKENS):
            for page in copied:
                first = len(one.history)
                for offset, slot in enumerate(one.table.slots(first, PAGE_TOKENS)):
                    self.understood[slot] = self.understood[page * PAGE_TOKENS + offset]
                self.fuse(one, history[first : first + PAGE_TOKENS])
        self.pool.free(copied)
        self.ingest(one, history[len(one.history) :])
        return name

    @rule(name=live, text=texts, route=routes)
    def append(self, name: int, text: Sequence[Stretch], route: bytes) -> None:
        self.ingest(self.conversations[name], spelt(text, route))

    @rule(name=live)
    def trim(self, name: int) -> None:
        one = self.conversations[name]
        self.pool.trim(one.table)
        one.floor = len(one.history)

    @rule(name=live, back=st.integers(1, 60))
    def rewind(self, name: int, back: int) -> None:
        """Take tokens back, as far as the pages are its own."""
        one = self.conversations[name]
        holders = self.holders()
        shared = [index for index, page in one.pages() if holders[page] > 1]
        floor = max(one.floor, PAGE_TOKENS * (max(shared, default=-1) + 1))
        tokens = max(min(floor, len(one.history)), len(one.history) - back)
        one.table.rewind(tokens)
        del one.history[tokens:]

    @rule(name=live)
    def remember(self, name: int) -> None:
        """End a turn: its pages are cached."""
        one = self.conversations[name]
        pages = one.shareable()
        self.cache.insert(spelling(one.history), pages, REGIME, ends(one.history))
        self.told.append(tuple(one.history))
        for number, page in enumerate(pages, 1):
            self.kept.setdefault(tuple(one.history[: number * PAGE_TOKENS]), page)
        self.use(tuple(one.history[: len(pages) * PAGE_TOKENS]))
        for prefix in list(self.kept)[: max(0, len(self.kept) - CACHED)]:
            del self.kept[prefix]

    @rule(name=consumes(live))
    def release(self, name: int) -> None:
        self.pool.release(self.conversations.pop(name).table)

    @rule(count=st.integers(0, CACHED))
    def give_back(self, count: int) -> None:
        """The pool takes what nobody else holds; which pages went, the holders tell."""
        alone = sum(self.pool.holders(page) == 1 for page in self.kept.values())
        free = self.pool.free_count
        assert self.cache.give_back(count) == min(count, alone) == self.pool.free_count - free
        self.forget_what_went()

    def forget_what_went(self) -> None:
        tables = self.held_by_tables()
        gone = [prefix for prefix, page in self.kept.items() if self.pool.holders(page) == tables[page]]
        assert all(other in gone for prefix in gone for other in self.kept if other[: len(prefix)] == prefix)
        for prefix in gone:
            del self.kept[prefix]

    @rule(seldom=st.integers(0, 9))
    def clear(self, seldom: int) -> None:
        if seldom == 9:
            self.cache.clear()
            self.kept.clear()

    @invariant()
    def every_page_is_free_or_held_by_those_we_know(self) -> None:
        holders = self.holders()
        for page in range(PAGES):
            assert self.pool.holders(page) == holders[page]
            assert self.pool.writable(page) == (holders[page] == 1)
        assert self.pool.free_count == PAGES - len(holders)
        assert self.cache.page_count == len(self.kept) == len(set(self.kept.values())) <= CACHED

    @invariant()
    def a_beginning_is_kept_as_long_as_what_follows_it(self) -> None:
        assert all(prefix[:-PAGE_TOKENS] in self.kept for prefix in self.kept if len(prefix) > PAGE_TOKENS)

    @invariant()
    def every_page_holds_what_its_holders_left_there(self) -> None:
        for one in self.conversations.values():
            assert one.table.tokens == len(one.history)
            for index, page in one.pages():
                self.check_page(page, tuple(one.history[: (index + 1) * PAGE_TOKENS]), index * PAGE_TOKENS)
        for prefix, page in self.kept.items():
            self.check_page(page, prefix, len(prefix) - PAGE_TOKENS)

    def ingest(self, one: Conversation, history: Sequence[tuple[int, bytes]]) -> None:
        """Write tokens to pages of their own, if there is room or the cache can make it."""
        if self.reserve(one, len(history)):
            before = spelling(one.history)
            for number, slot in enumerate(one.table.slots(len(one.history), len(history)), 1):
                assert self.pool.writable(slot // PAGE_TOKENS)
                self.understood[slot] = before + spelling(history[:number])
            self.fuse(one, history)

    def reserve(self, one: Conversation, count: int) -> bool:
        alone = sum(self.pool.holders(page) == 1 for page in self.kept.values())
        fits = one.table.pages_missing(count) <= self.pool.free_count + alone
        with nullcontext() if fits else pytest.raises(BudgetError):
            self.pool.extend(one.table, count)
        self.forget_what_went()
        return fits

    def fuse(self, one: Conversation, history: Sequence[tuple[int, bytes]]) -> None:
        for entry, slot in zip(history, one.table.slots(len(one.history), len(history)), strict=True):
            assert self.pool.writable(slot // PAGE_TOKENS)
            one.history.append(entry)
            self.fused[slot] = tuple(one.history)
        one.table.advance(len(history))

    def check_match(self, history: Sequence[tuple[int, bytes]], pages: Sequence[int], whole: int) -> None:
        """Compare with the longest prefix of `history` that is kept, in all parts and over tokens alone."""
        prefixes = [tuple(history[:end]) for end in range(PAGE_TOKENS, len(history), PAGE_TOKENS)]
        known = {spelling(prefix): prefix for prefix in self.kept}
        assert whole == sum(prefix in self.kept for prefix in prefixes)
        assert len(pages) == sum(spelling(prefix) in known for prefix in prefixes)
        assert list(pages[:whole]) == [self.kept[prefix] for prefix in prefixes[:whole]]
        for index, page in enumerate(pages):
            for end, slot in enumerate(range(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS), index * PAGE_TOKENS + 1):
                assert self.understood[slot] == spelling(history[:end])
        if pages:
            self.use(next(prefix for prefix, page in self.kept.items() if page == pages[-1]))
        if whole:
            self.use(prefixes[whole - 1])

    def check_page(self, page: int, history: History, first: int) -> None:
        for offset in range(len(history) - first):
            slot, until = page * PAGE_TOKENS + offset, history[: first + offset + 1]
            assert self.understood[slot] == spelling(until)
            assert self.fused[slot] == until

    def use(self, prefix: History) -> None:
        """A prefix and all it begins with become the most recent, the longest of them the least so."""
        for end in range(len(prefix), 0, -PAGE_TOKENS):
            self.kept[prefix[:end]] = self.kept.pop(prefix[:end])

    def holders(self) -> Counter[int]:
        return self.held_by_tables() + Counter(self.kept.values())

    def held_by_tables(self) -> Counter[int]:
        return Counter(page for one in self.conversations.values() for page in one.table.page_ids)


def spelt(text: Sequence[Stretch], route: bytes) -> list[tuple[int, bytes]]:
    return [(token, route) for token, count in text for _ in range(count)]


def ends(history: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The routes as the cache is told of them, a stretch for each token."""
    return [(end, route) for end, (_, route) in enumerate(history, 1)]


def spelling(history: Sequence[tuple[int, bytes]]) -> tuple[int, ...]:
    return tuple(token for token, _ in history)


Conversations.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestConversations = Conversations.TestCase
