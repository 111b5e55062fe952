"""What is drafted: the latest, longest run that was seen before, and as much of it as pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.turn.draft import LENGTHS, ROW_COST, Lookup, paying


def heard(*token_ids: int) -> Lookup:
    lookup = Lookup()
    lookup.hear(token_ids, len(token_ids))
    return lookup


def test_nothing_is_drafted_from_what_was_never_said():
    assert heard(1, 2, 3).draft(4, 8) == (0, [])
    assert Lookup().draft(4, 8) == (0, [])


def test_what_followed_the_latest_time_is_drafted():
    assert heard(1, 2, 3, 4, 1, 2, 5, 6, 7, 1).draft(2, 3) == (2, [5, 6, 7])


def test_the_longest_run_goes_first():
    assert heard(9, 1, 2, 3, 4, 1, 2, 5, 6, 9, 1).draft(2, 2) == (3, [3, 4])
    assert heard(7, 8, 9, 1, 2, 3, 4, 9, 1, 2, 5, 7, 8, 9, 1).draft(2, 2) == (5, [3, 4])


def test_what_repeats_itself_goes_on():
    assert heard(5, 1, 2, 3, 1, 2, 3, 1).draft(2, 8) == (5, [3, 1, 2, 3, 1, 2, 3, 1])


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 3), st.integers(1, 12), st.integers(0, 60))
def test_a_draft_is_what_looking_through_all_finds(ids: list[int], token_id: int, count: int, cut: int) -> None:
    lookup = Lookup()
    lookup.hear(ids[:cut], cut)
    lookup.hear(ids[cut:], len(ids))
    said = [*ids, token_id]
    for length in LENGTHS:
        places = [end for end in range(length, len(ids)) if said[end - length : end] == said[-length:]]
        if places:
            drafted = list(said)
            for _ in range(count):
                drafted.append(drafted[len(drafted) - (len(said) - places[-1])])
            assert lookup.draft(token_id, count) == (length, drafted[len(said) :])
            return
    assert lookup.draft(token_id, count) == (0, [])


@pytest.mark.parametrize(("chance", "count"), [(0.0, 0), (ROW_COST, 0), (0.26, 1), (0.5, 2), (0.9, 13), (1.0, 137)])
def test_the_last_token_of_a_draft_pays_for_its_row(chance: float, count: int) -> None:
    found = paying(chance)
    assert found == count
    assert min(chance, 0.99) ** found >= ROW_COST or not found
    assert min(chance, 0.99) ** (found + 1) < ROW_COST or not found
