import random

import pytest

from modularbase_core.packs.policy import LeastFrequentRecentlyUsed, LeastRecentlyUsed, eviction


def test_lru_evicts_who_was_unused_for_longest_and_the_unused_first():
    policy = LeastRecentlyUsed()
    for name in "abca":
        policy.used([name])
    assert policy.victim(["a", "b", "c"]) == "b"
    assert policy.victim(["a", "b", "never"]) == "never"


def test_lfru_spares_the_latest_and_evicts_the_rarest_of_the_others():
    policy = LeastFrequentRecentlyUsed()
    for name in "aaabbbbc":
        policy.used([name])
    assert policy.victim(["a", "b", "c"]) == "a"  # c came last, b came more often
    assert policy.victim(["c"]) == "c"


def test_lfru_keeps_a_favourite_that_lru_would_lose():
    lru, lfru = LeastRecentlyUsed(), LeastFrequentRecentlyUsed()
    for name in "aaaabc":
        lru.used([name])
        lfru.used([name])
    assert lru.victim(["a", "b", "c"]) == "a"
    assert lfru.victim(["a", "b", "c"]) == "b"


def test_lfru_forgets_what_lies_behind_its_window():
    policy = LeastFrequentRecentlyUsed(window=4)
    for name in "aaaaaabbcc":
        policy.used([name])
    assert policy.victim(["a", "b", "c"]) == "a"


def test_with_two_slots_lfru_is_lru():
    lru, lfru = LeastRecentlyUsed(), LeastFrequentRecentlyUsed()
    draw = random.Random(0)
    slots = ["a", "b"]
    for policy in (lru, lfru):
        policy.used(slots)
    for name in draw.choices("abcdef", [8, 4, 2, 1, 1, 1], k=500):
        assert lru.victim(slots) == lfru.victim(slots)
        if name not in slots:
            slots[slots.index(lru.victim(slots))] = name
        lru.used([name])
        lfru.used([name])


@pytest.mark.parametrize(("name", "kind"), [("lru", LeastRecentlyUsed), ("lfru", LeastFrequentRecentlyUsed)])
def test_the_settings_name_a_policy(name, kind):
    assert isinstance(eviction(name), kind)
