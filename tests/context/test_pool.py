"""Pool and tables together against a plain model: a memory that remembers which token was written where."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from modularbase_core.context.page import PageTable, plan_call, split_on_blocks
from modularbase_core.context.pool import PagePool
from modularbase_core.errors import BudgetError
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window

WINDOW = Window(trained_tokens=112, block_tokens=32, recent_tokens=48, sink_tokens=32)
PAGES = 24


class Sequences(RuleBasedStateMachine):
    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool("hot pages", PAGES)
        self.memory: dict[int, tuple[int, int]] = {}
        self.ingested: dict[int, set[int]] = {}
        self.live: dict[int, PageTable] = {}

    @rule(target=tables)
    def begin(self) -> int:
        name = len(self.ingested)
        self.live[name], self.ingested[name] = PageTable(WINDOW), set()
        return name

    @rule(name=tables, count=st.integers(1, 120), max_rows=st.integers(1, 40), trim=st.booleans())
    def ingest(self, name: int, count: int, max_rows: int, trim: bool) -> None:
        table = self.live[name]
        for first, rows in split_on_blocks(table.tokens, count, WINDOW.block_tokens, max_rows):
            missing = table.pages_missing(rows)
            if missing > self.pool.free_count:
                held = table.page_ids
                with pytest.raises(BudgetError, match=f"{missing} more pages .* {self.pool.free_count} of {PAGES}"):
                    self.pool.extend(table, rows)
                assert table.page_ids == held
                return
            self.pool.extend(table, rows)
            self.write(name, first, rows)
            if trim:
                self.pool.trim(table)

    def write(self, name: int, first: int, rows: int) -> None:
        table = self.live[name]
        call = plan_call(table, rows)
        for i, slot in enumerate(call.slots):
            self.memory[slot] = (name, first + i)
            self.ingested[name].add(first + i)
        listed = [page * PAGE_TOKENS + offset for page in call.visible for offset in range(PAGE_TOKENS)]
        for i in range(rows):
            read = [self.memory[slot] for slot in listed[: call.context + i + 1]]
            assert read == [(name, token) for token in self.visible(name, first + i)]
        table.advance(rows)

    def visible(self, name: int, token: int) -> list[int]:
        recent = token // WINDOW.block_tokens * WINDOW.block_tokens - WINDOW.recent_tokens
        return sorted(t for t in self.ingested[name] if t <= token and (t < WINDOW.sink_tokens or t >= recent))

    @rule(name=tables, more=st.integers(0, 200))
    def skip(self, name: int, more: int) -> None:
        table = self.live[name]
        token = (table.tokens + more) // PAGE_TOKENS * PAGE_TOKENS
        if token > table.tokens:
            half_filled = range(table.tokens // PAGE_TOKENS * PAGE_TOKENS, table.tokens)
            self.ingested[name].difference_update(half_filled)
            self.pool.skip(table, token)

    @rule(name=tables)
    def trim(self, name: int) -> None:
        self.pool.trim(self.live[name])

    @rule(name=tables)
    def begin_again(self, name: int) -> None:
        self.pool.release(self.live[name])
        self.ingested[name].clear()

    @rule(name=consumes(tables))
    def end(self, name: int) -> None:
        self.pool.release(self.live.pop(name))

    @invariant()
    def every_page_is_free_or_held_once(self) -> None:
        held = [page for table in self.live.values() for page in table.page_ids]
        assert len(held) == len(set(held)) == PAGES - self.pool.free_count


Sequences.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSequences = Sequences.TestCase


def test_a_conversation_of_any_length_runs_in_a_window_of_pages() -> None:
    pool, table = PagePool("hot pages", WINDOW.trained_tokens // PAGE_TOKENS), PageTable(WINDOW)
    for _ in range(20 * WINDOW.trained_tokens):
        pool.extend(table, 1)
        plan_call(table, 1)
        table.advance(1)
        pool.trim(table)


def test_fusion_may_follow_understanding_over_the_same_pages() -> None:
    pool, table = PagePool("hot pages", 20), PageTable(WINDOW)
    pool.extend(table, 160)
    table.advance(160)
    pool.trim(table, 40)
    assert plan_call(table, 24, 40).slots == plan_call(table, 24, 40).slots
    pool.trim(table)
    with pytest.raises(AssertionError, match="token 40 has no page"):
        table.visible(40)


def test_too_few_pages_are_refused_with_the_numbers() -> None:
    pool = PagePool("hot pages", 8)
    pool.allocate(5)
    with pytest.raises(BudgetError) as caught:
        pool.allocate(4)
    assert str(caught.value) == (
        "hot pages: 4 more pages of 16 tokens are needed but 3 of 8 are free; "
        "shorten the prompt, end a conversation or give it more memory"
    )
    assert pool.free_count == 3


def test_a_page_is_not_freed_twice() -> None:
    pool = PagePool("hot pages", 2)
    (page,) = pool.allocate(1)
    pool.free([page])
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([page])
    with pytest.raises(AssertionError, match="has no page 2"):
        pool.free([2])


def test_a_shared_page_returns_when_its_last_holder_gives_it_back() -> None:
    pool = PagePool("hot pages", 2)
    (page,) = pool.allocate(1)
    assert pool.writable(page)
    pool.share([page])
    assert (pool.holders(page), pool.writable(page), pool.free_count) == (2, False, 1)
    pool.free([page])
    assert (pool.holders(page), pool.writable(page), pool.free_count) == (1, True, 1)
    pool.free([page])
    assert (pool.holders(page), pool.writable(page), pool.free_count) == (0, False, 2)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([page])


def test_a_page_has_as_many_holders_as_there_are() -> None:
    pool = PagePool("hot pages", 1)
    (page,) = pool.allocate(1)
    pool.share([page] * 1000)
    pool.free([page] * 1000)
    assert pool.writable(page)


def test_a_free_page_is_not_shared() -> None:
    pool = PagePool("hot pages", 2)
    with pytest.raises(AssertionError, match="page 1 of hot pages is free and cannot be shared"):
        pool.share([1])
    with pytest.raises(AssertionError, match="has no page -1"):
        pool.share([-1])


def test_a_table_gives_up_its_share_only() -> None:
    pool, tables = PagePool("hot pages", 8), [PageTable(WINDOW), PageTable(WINDOW)]
    pool.extend(tables[0], 40)
    tables[0].advance(40)
    first = tables[0].page_ids[:2]
    pool.share(first)
    tables[1].attach(first)
    tables[1].advance(32)
    pool.extend(tables[1], 1)
    pool.release(tables[0])
    assert tables[1].page_ids[:2] == first
    assert pool.free_count == 5
    pool.release(tables[1])
    assert pool.free_count == 8


def test_room_is_not_made_in_a_page_that_others_hold() -> None:
    pool, table = PagePool("hot pages", 4), PageTable(WINDOW)
    pool.extend(table, 20)
    table.advance(20)
    pool.share(table.page_ids[:1])
    pool.extend(table, 1)
    table.rewind(15)
    with pytest.raises(AssertionError, match="tokens from 15 on would be written to a shared page"):
        pool.extend(table, 1)


def test_a_pool_that_is_short_asks_for_what_is_missing_before_it_refuses() -> None:
    pool = PagePool("hot pages", 4)
    spare, asked = pool.allocate(2), []

    def give(missing: int) -> None:
        asked.append(missing)
        pool.free([spare.pop()])

    pool.when_short = give
    assert len(pool.allocate(3)) == 3
    with pytest.raises(BudgetError, match=r"5 more pages .* 1 of 4 are free"):
        pool.allocate(5)
    assert asked == [1, 5]


def test_what_is_attached_for_tokens_to_come_is_taken_back() -> None:
    pool, table = PagePool("hot pages", 4), PageTable(WINDOW)
    pool.extend(table, 50)
    table.advance(17)
    pool.share(table.page_ids)
    pool.cut(table)
    assert [pool.holders(page) for page in range(4)] == [2, 2, 1, 1]
