import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.context.page import PageTable, plan_call, split_on_blocks
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window

NANO = Window()
SMALL = Window(trained_tokens=128, block_tokens=32, recent_tokens=48, sink_tokens=32)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    sinks, block, recent, recall = (draw(st.integers(low, 5)) * PAGE_TOKENS for low in (1, 1, 1, 0))
    return Window(
        trained_tokens=sinks + block + recent + recall,
        block_tokens=block,
        recent_tokens=recent,
        sink_tokens=sinks,
    )


def filled(window: Window, tokens: int) -> PageTable:
    """Page i has id i."""
    table = PageTable(window)
    attach(table, tokens)
    table.advance(tokens)
    return table


def attach(table: PageTable, count: int) -> None:
    reach = -(-table.tokens // PAGE_TOKENS)
    table.attach(range(reach, reach + table.pages_missing(count)))


def seen(window: Window, token: int) -> list[int]:
    """The tokens that `token` sees, itself included, straight from the definition."""
    recent = max(window.sink_tokens, token // window.block_tokens * window.block_tokens - window.recent_tokens)
    return [t for t in range(token + 1) if t < window.sink_tokens or t >= recent]


@given(windows(), st.integers(0, 1500))
def test_a_token_sees_sinks_and_recent_tokens_only(window: Window, token: int) -> None:
    pages, before = filled(window, token + 1).visible(token)
    rows = [page * PAGE_TOKENS + offset for page in pages for offset in range(PAGE_TOKENS)]
    assert rows[: before + 1] == seen(window, token)
    assert before < window.trained_tokens
    assert len(pages) <= window.trained_tokens // PAGE_TOKENS


@given(windows(), st.integers(0, 900), st.integers(1, 600), st.integers(1, 64))
def test_chunks_see_what_single_tokens_see(window: Window, start: int, count: int, max_rows: int) -> None:
    table = filled(window, start + count)
    tokens = []
    for first, rows in split_on_blocks(start, count, window.block_tokens, max_rows):
        assert 0 < rows <= max_rows
        call = plan_call(table, rows, first)
        for i in range(rows):
            alone = plan_call(table, 1, first + i)
            assert call.context + i == alone.context
            assert call.slots[i] == alone.slots[0] == first + i
            assert call.visible[: len(alone.visible)] == alone.visible
            tokens.append(first + i)
    assert tokens == list(range(start, start + count))


@pytest.mark.parametrize("token", [0, 767, 768, 1023, 5 * 1024, 5 * 1024 + 255])
def test_the_shipped_window_is_never_exceeded(token: int) -> None:
    pages, before = filled(NANO, token + 1).visible(token)
    assert before == (token if token < 768 else 16 + 496 + token % 256)
    assert len(pages) == before // PAGE_TOKENS + 1


def test_a_call_lists_slots_context_and_pages() -> None:
    table = PageTable(SMALL)
    table.attach([7, 3, 9])
    table.advance(33)
    call = plan_call(table, 3)
    assert (call.start, call.count, call.context) == (33, 3, 33)
    assert call.slots == [9 * 16 + 1, 9 * 16 + 2, 9 * 16 + 3]
    assert call.visible == [7, 3, 9]


def test_planning_changes_nothing_until_the_table_advances() -> None:
    table = PageTable(SMALL)
    table.attach([0])
    assert plan_call(table, 4) == plan_call(table, 4)
    table.advance(4)
    assert plan_call(table, 4).start == 4


@given(windows(), st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_released_pages_are_never_listed_again(window: Window, counts: list[int]) -> None:
    table, gone, page_ids = PageTable(window), set(), iter(range(10_000))
    for count in counts:
        for first, rows in split_on_blocks(table.tokens, count, window.block_tokens, 512):
            table.attach([next(page_ids) for _ in range(table.pages_missing(rows))])
            call = plan_call(table, rows)
            assert gone.isdisjoint(call.visible)
            assert call.context + 1 == len(seen(window, first))
            table.advance(rows)
            released = table.release_invisible()
            assert gone.isdisjoint(released)
            gone.update(released)
            assert len(table.page_ids) <= (window.trained_tokens - window.recall_tokens) // PAGE_TOKENS + 1


@given(windows(), st.integers(0, 400), st.integers(0, 1200))
def test_a_late_table_ends_with_every_token_that_matters(window: Window, watermark: int, more: int) -> None:
    start = watermark + more
    table = filled(window, watermark)
    for first, last in table.behind(start):
        table.skip_to(first)
        attach(table, last - first)
        table.advance(last - first)
    assert table.tokens == start
    attach(table, 1)
    pages, before = table.visible(start)
    rows = [page * PAGE_TOKENS + offset for page in pages for offset in range(PAGE_TOKENS)]
    assert rows[: before + 1] == seen(window, start)


def test_a_skipped_span_is_not_listed_and_a_half_filled_page_is_given_up() -> None:
    table = filled(SMALL, 40)
    assert table.skip_to(64) == [2]
    table.attach([11])
    table.advance(4)
    assert plan_call(table, 1).visible == [0, 1, 11]
    assert plan_call(table, 1).context == 32 + 4


def test_recalled_pages_stand_between_sinks_and_recent_ones() -> None:
    window = Window(trained_tokens=160, block_tokens=32, recent_tokens=48, sink_tokens=32)
    table = filled(window, 200)
    table.recall(192, (5, 3))
    assert table.visible(195)[0] == [0, 1, 3, 5, 9, 10, 11, 12]
    assert table.release_invisible() == [2, 4, 6, 7, 8]


def test_a_cleared_table_is_a_new_one() -> None:
    table = filled(SMALL, 100)
    assert table.clear() == list(range(7))
    assert (table.tokens, table.page_ids, table.pages_missing(17)) == (0, [], 2)


def test_our_own_mistakes_are_caught() -> None:
    table = filled(SMALL, 20)
    with pytest.raises(AssertionError, match="tokens 20 to 32 cross a block of 32"):
        plan_call(table, 13)
    with pytest.raises(AssertionError, match="cannot begin at 21 with 20 tokens in place"):
        plan_call(table, 1, 21)
    with pytest.raises(AssertionError, match="advanced past the attached pages"):
        table.advance(13)
    with pytest.raises(AssertionError, match="cannot skip back from 20 to 16"):
        table.skip_to(16)
    with pytest.raises(AssertionError, match="cannot skip into the middle of a page, to 33"):
        table.skip_to(33)
    with pytest.raises(AssertionError, match="token 32 has no page"):
        table.visible(32)


def test_spans_that_are_held_leave_gaps_out() -> None:
    table = filled(SMALL, 100)
    for index in (0, 2, 3, 5):
        del table._page[index]
    assert list(table.held(0, 100)) == [(16, 32), (64, 80), (96, 100)]
    assert list(table.held(20, 30)) == [(20, 30)]
    assert list(table.held(32, 60)) == []


@given(windows(), st.data())
def test_below_its_limit_a_token_sees_all_before_it_and_from_there_on_none_does(
    window: Window, data: st.DataObject
) -> None:
    limit = window.fully_visible_tokens
    assert limit % window.block_tokens == 0
    below, beyond = data.draw(st.integers(0, limit - 1)), data.draw(st.integers(limit, 3 * limit))
    assert len(seen(window, below)) == below + 1
    assert PageTable(window).first_recent(below) == window.sink_tokens
    assert len(seen(window, beyond)) < beyond + 1


def test_a_page_is_exchanged_for_one_that_says_the_same() -> None:
    table = filled(SMALL, 40)
    assert table.replace(1, 99) == 1
    assert table.page_ids == [0, 99, 2]
    assert table.slots(16, 1) == [99 * PAGE_TOKENS]


@pytest.mark.parametrize(("tokens", "kept"), [(0, []), (1, [0]), (16, [0]), (17, [0, 1]), (40, [0, 1, 2])])
def test_what_is_attached_for_tokens_to_come_is_given_up(tokens: int, kept: list[int]) -> None:
    table = filled(SMALL, 40)
    attach(table, 30)
    table.rewind(tokens)
    assert sorted([*table.cut(), *kept]) == [0, 1, 2, 3, 4]
    assert table.page_ids == kept
    assert table.pages_missing(30) == -(-(tokens + 30) // PAGE_TOKENS) - len(kept)
    assert not table.cut()
