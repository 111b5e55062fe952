"""Sequences that share what they begin with, against plain lists: what every slot holds, and who holds every page.

Any of them may fail, end or run short of pages at any time; what another one reads never changes.
"""

from collections import Counter
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from modularbase_core.context.beginning import Beginnings
from modularbase_core.context.page import PageTable
from modularbase_core.context.pool import PagePool
from modularbase_core.context.prefix import PrefixCache
from modularbase_core.errors import BudgetError
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window
from modularbase_core.turn.fusions import MEAN, Shares
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.sharing import Sharing

WINDOW = Window(trained_tokens=112, block_tokens=32, recent_tokens=48, sink_tokens=32)
PAGES, CACHED = 24, 10

texts = st.lists(st.tuples(st.integers(0, 1), st.sampled_from((1, 15, 16, 32, 33))), min_size=1, max_size=3)
packs = st.sampled_from(("chat", "code"))


class FaultError(Exception):
    """What a kernel, a plugin or Ctrl-C does in the middle of a turn."""


@dataclass
class Talk:
    """said: (token, who fused it) of every token."""

    sequence: Sequence = field(default_factory=lambda: Sequence(PageTable(WINDOW)))
    said: list[tuple[int, str]] = field(default_factory=list)


class Talks(RuleBasedStateMachine):
    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool("hot pages", PAGES)
        self.cache = PrefixCache(self.pool, CACHED)
        self.sharing = Sharing(Beginnings(self.cache, self.pool, self.copy, b"weights"), {}, Shares(MEAN, -1.0))
        self.talks: list[Talk] = []
        self.understood: dict[int, tuple[int, ...]] = {}  # slot: the tokens up to its own
        self.fused: dict[int, tuple[tuple[int, str], ...]] = {}  # slot: tokens and routes up to its own

    def copy(self, source: int, target: int) -> None:
        assert self.pool.writable(target)
        for offset in range(PAGE_TOKENS):
            slot = source * PAGE_TOKENS + offset
            if slot in self.understood:
                self.understood[target * PAGE_TOKENS + offset] = self.understood[slot]
            self.fused.pop(target * PAGE_TOKENS + offset, None)

    @rule(target=live)
    def begin(self) -> Talk:
        self.talks.append(Talk())
        return self.talks[-1]

    @rule(one=live, text=texts, pack=packs, fails=st.sampled_from(("", "", "understood", "claimed", "kept", "kept")))
    def turn(self, one: Talk, text: Sequence_[tuple[int, int]], pack: str, fails: str) -> None:
        """Take a turn in, as the engine does; where it fails it is as if it had never been asked."""
        sequence, start = one.sequence, len(one.said)
        token_ids = [token for token, count in text for _ in range(count)]
        try:
            self.sharing.adopt(sequence, token_ids)
            assert sequence.table.tokens < start + len(token_ids)
            self.understand(one, token_ids[sequence.table.tokens - start :])
            self.fault(fails == "understood")
            sequence.route = force([pack])
            self.sharing.begin_turn(sequence)
            self.fault(fails == "claimed")
            one.said += [(token, pack) for token in token_ids]
            self.fuse(one)
            self.sharing.keep(sequence)
            self.fault(fails == "kept")
            self.pool.trim(sequence.table)
        except (FaultError, BudgetError):
            self.sharing.rewind(sequence, start)
            del one.said[start:]

    @rule(one=live, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=40), told=st.booleans())
    def answer(self, one: Talk, tokens: Sequence_[int], told: bool) -> None:
        """Go on by the route of the last turn, token by token; it may be broken off without being handed on."""
        if not one.sequence.table.tokens:
            return
        pack = one.sequence.route.ids[0]
        for token in tokens:
            try:
                self.understand(one, [token])
            except BudgetError:
                break
            one.said.append((token, pack))
            self.fuse(one)
            if len(one.said) % WINDOW.block_tokens == 0:
                self.sharing.keep(one.sequence)
                self.pool.trim(one.sequence.table)
        if told:
            self.sharing.keep(one.sequence)

    @rule(one=consumes(live))
    def release(self, one: Talk) -> None:
        self.pool.release(one.sequence.table)
        self.talks.remove(one)

    def understand(self, one: Talk, token_ids: Sequence_[int]) -> None:
        table = one.sequence.table
        before = tuple(one.sequence.beginning.token_ids) if table.tokens > len(one.said) else self.spelt(one)
        try:
            self.pool.extend(table, len(token_ids))
        except BudgetError:
            assert all(self.held_by_talks()[page] for page in range(PAGES) if self.pool.holders(page))
            raise
        for number, slot in enumerate(table.slots(table.tokens, len(token_ids)), 1):
            assert self.pool.writable(slot // PAGE_TOKENS)
            self.understood[slot] = (*before, *token_ids[:number])
            self.fused.pop(slot, None)
        one.sequence.advance(token_ids)

    def fuse(self, one: Talk) -> None:
        sequence, tokens = one.sequence, one.sequence.table.tokens
        for number, slot in enumerate(sequence.table.slots(sequence.fused, tokens - sequence.fused)):
            assert self.pool.writable(slot // PAGE_TOKENS)
            self.fused[slot] = tuple(one.said[: sequence.fused + number + 1])
        sequence.fused = tokens

    def fault(self, happens: bool) -> None:
        if happens:
            raise FaultError

    def spelt(self, one: Talk) -> tuple[int, ...]:
        return tuple(token for token, _ in one.said)

    @invariant()
    def every_page_holds_what_its_sequences_read_there(self) -> None:
        for one in self.talks:
            table, tokens = one.sequence.table, self.spelt(one)
            assert table.tokens == one.sequence.fused == len(tokens)
            for token in range(len(tokens)):
                if table.holds(token // PAGE_TOKENS):
                    slot = table.page(token // PAGE_TOKENS) * PAGE_TOKENS + token % PAGE_TOKENS
                    assert self.understood[slot] == tokens[: token + 1]
                    assert self.fused[slot] == tuple(one.said[: token + 1])

    @invariant()
    def every_page_is_free_or_held_by_sequences_and_the_cache(self) -> None:
        holders = sum(self.pool.holders(page) for page in range(PAGES))
        assert holders == sum(self.held_by_talks().values()) + self.cache.page_count
        assert self.pool.free_count == sum(not self.pool.holders(page) for page in range(PAGES))
        assert self.cache.page_count <= CACHED

    def held_by_talks(self) -> Counter[int]:
        return Counter(page for one in self.talks for page in one.sequence.table.page_ids)

    def teardown(self) -> None:
        for one in self.talks:
            self.pool.release(one.sequence.table)
        self.cache.clear()
        assert self.pool.free_count == PAGES


Talks.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTalks = Talks.TestCase
