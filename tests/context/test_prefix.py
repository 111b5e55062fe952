"""Which prefixes are found again, in which parts, and which leave first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.context.pool import PagePool
from modularbase_core.context.prefix import ROOT, Match, PrefixCache, Routes, chain
from modularbase_core.sdk.architecture import PAGE_TOKENS

WEIGHTS, OTHER_WEIGHTS = b"weights", b"other weights"
CHAT, CODE = b"chat", b"code"

parts = st.tuples(st.binary(max_size=3), st.lists(st.integers(0, 2), max_size=3), st.binary(max_size=3))


class Cache:
    """A cache over a pool, told of texts in which a letter is a page of 16 equal tokens."""

    def __init__(self, *, pages: int = 32, limit: int = 32) -> None:
        self.pool = PagePool("hot pages", pages)
        self.prefixes = PrefixCache(self.pool, limit)

    def insert(self, text: str, routes: Routes | None = None, regime: bytes = WEIGHTS) -> list[int]:
        """Compute a text anew, and end."""
        pages = self.pool.allocate(len(text))
        self.prefixes.insert(tokens(text), pages, regime, answered(text, CHAT) if routes is None else routes)
        self.pool.free(pages)
        return pages

    def match(self, text: str, routes: Routes | None = None, regime: bytes = WEIGHTS) -> Match:
        """Match a text of which one more token is to be computed."""
        routes = answered(text, CHAT) if routes is None else routes
        return self.prefixes.match([*tokens(text), 0], regime, routes)

    def cached(self, text: str) -> int:
        """Return how many pages of a text are cached; to ask is to use them."""
        match = self.match(text)
        self.pool.free(match.pages)
        return len(match.pages)


def tokens(text: str) -> list[int]:
    return [ord(letter) for letter in text for _ in range(PAGE_TOKENS)]


def answered(text: str, route: bytes) -> Routes:
    return [(len(text) * PAGE_TOKENS, route)]


@given(parts, parts)
def test_names_differ_where_anything_differs(
    one: tuple[bytes, list[int], bytes], other: tuple[bytes, list[int], bytes]
) -> None:
    assert (chain(*one) == chain(*other)) == (one == other)


def test_a_name_is_the_same_in_every_process() -> None:
    assert chain(ROOT, range(PAGE_TOKENS), WEIGHTS).hex() == "08116143ebc3c4a154d1f0f76703e133"
    assert len(chain(ROOT, [], b"")) == 16


def test_a_prefix_is_found_and_shared() -> None:
    cache = Cache()
    pages = cache.insert("abc")
    match = cache.match("abd")
    assert match == Match(tuple(pages[:2]), 2)
    assert [cache.pool.holders(page) for page in pages] == [2, 2, 1]


def test_the_same_page_after_two_prefixes_is_not_the_same_page() -> None:
    cache = Cache()
    first, second = cache.insert("ax"), cache.insert("bx")
    assert cache.match("ax").pages == tuple(first)
    assert cache.match("bx").pages == tuple(second)
    assert cache.match("x").pages == cache.match("cx").pages == ()


def test_other_weights_are_other_pages() -> None:
    cache = Cache()
    cache.insert("ab")
    assert cache.match("ab", regime=OTHER_WEIGHTS) == Match((), 0)
    assert cache.insert("ab", regime=OTHER_WEIGHTS) == list(cache.match("ab", regime=OTHER_WEIGHTS).pages)


@pytest.mark.parametrize(("length", "pages"), [(0, 0), (1, 0), (16, 0), (17, 1), (32, 1), (33, 2), (47, 2), (49, 3)])
def test_a_token_remains_to_be_computed(length: int, pages: int) -> None:
    cache = Cache()
    cache.insert("aaa")
    assert len(cache.prefixes.match([ord("a")] * length, WEIGHTS, [(length, CHAT)]).pages) == pages


def test_only_full_pages_are_kept() -> None:
    cache = Cache()
    pages = cache.pool.allocate(3)
    cache.prefixes.insert(tokens("abc")[:-1], pages, WEIGHTS, answered("abc", CHAT))
    assert cache.prefixes.page_count == 2


def test_after_other_routes_a_page_is_shared_in_part() -> None:
    cache = Cache()
    pages = cache.insert("abc")
    assert cache.match("abc", answered("abc", CODE)) == Match(tuple(pages), 0)
    assert cache.match("abc", []) == Match(tuple(pages), 0)
    assert cache.match("abc", [*answered("a", CHAT), *answered("abc", CODE)]) == Match(tuple(pages), 1)
    assert cache.match("abc", [*answered("a", CODE), *answered("abc", CHAT)]) == Match(tuple(pages), 0)


def test_a_page_is_whole_only_as_far_as_the_routes_are_known() -> None:
    cache = Cache()
    pages = cache.insert("abc")
    assert cache.match("abc", [(2 * PAGE_TOKENS - 1, CHAT)]) == Match(tuple(pages), 1)
    assert cache.match("abc", [(2 * PAGE_TOKENS, CHAT)]) == Match(tuple(pages), 2)


def test_a_page_in_which_the_route_changes_is_told_from_one_in_which_it_does_so_elsewhere() -> None:
    cache = Cache()
    pages = cache.insert("ab", [(20, CHAT), (32, CODE)])
    assert cache.match("ab", [(20, CHAT), (32, CODE)]) == Match(tuple(pages), 2)
    assert cache.match("ab", [(21, CHAT), (32, CODE)]) == Match(tuple(pages), 1)


def test_turns_of_one_route_are_one_stretch() -> None:
    cache = Cache()
    pages = cache.insert("ab", [(5, CHAT), (5, CODE), (20, CHAT), (32, CHAT)])
    assert cache.match("ab") == Match(tuple(pages), 2)


def test_what_is_not_fused_is_not_kept() -> None:
    cache = Cache()
    cache.insert("abc", [(PAGE_TOKENS, CHAT), (2 * PAGE_TOKENS + 3, CODE)])
    assert cache.prefixes.page_count == 2
    cache.insert("d", [])
    assert cache.prefixes.page_count == 2


def test_packs_do_not_push_each_other_out() -> None:
    cache = Cache()
    chat, code = cache.insert("abc"), cache.insert("ab", answered("ab", CODE))
    assert cache.match("abc") == Match(tuple(chat), 3)
    assert cache.match("abc", answered("abc", CODE)) == Match((*code, chat[2]), 2)


def test_a_prefix_that_is_known_keeps_its_pages() -> None:
    cache = Cache()
    first, second = cache.insert("ab"), cache.insert("abc")
    assert cache.match("abc") == Match((*first, second[2]), 3)
    assert cache.pool.free_count == 32 - 3


def test_the_least_recently_used_leaf_goes_first() -> None:
    cache = Cache(limit=5)
    cache.insert("abc")
    cache.insert("xy")
    assert cache.cached("abc") == 3
    cache.insert("s")
    assert [cache.cached(text) for text in ("xy", "abc", "s")] == [1, 3, 1]
    cache.insert("tu")
    assert [cache.cached(text) for text in ("xy", "abc", "s", "tu")] == [0, 2, 1, 2]
    assert cache.prefixes.page_count == 5
    assert cache.pool.free_count == 32 - 5


def test_of_a_prefix_longer_than_the_limit_the_beginning_is_kept() -> None:
    cache = Cache(limit=2)
    cache.insert("x")
    cache.insert("abc")
    assert [cache.cached(text) for text in ("x", "abc")] == [0, 2]


def test_a_cache_of_no_pages_keeps_none() -> None:
    cache = Cache(limit=0)
    cache.insert("ab")
    assert cache.match("ab") == Match((), 0)
    assert cache.pool.free_count == 32


def test_pages_are_given_back_from_the_least_recent_leaf_on() -> None:
    cache = Cache()
    cache.insert("abc")
    cache.insert("xy")
    assert cache.prefixes.give_back(0) == cache.prefixes.give_back(-1) == 0
    assert cache.prefixes.give_back(2) == 2
    assert [cache.cached(text) for text in ("abc", "xy")] == [1, 2]
    assert cache.prefixes.give_back(9) == 3
    assert (cache.prefixes.page_count, cache.pool.free_count) == (0, 32)


def test_what_a_sequence_holds_is_not_given_back() -> None:
    cache = Cache()
    cache.insert("abc")
    held = cache.match("ab").pages
    assert cache.prefixes.give_back(9) == 1
    assert cache.cached("abc") == 2
    cache.pool.free(held)
    assert cache.prefixes.give_back(9) == 2


def test_pages_before_one_that_is_held_are_given_back_when_no_others_are_left() -> None:
    cache = Cache()
    cache.insert("abc")
    cache.insert("xy")
    first, second, third = cache.match("abc").pages
    cache.pool.free([first, second])  # out of sight of a sequence that went on
    assert cache.cached("xy") == 2  # the most recent, and yet it goes before what is in use
    assert cache.prefixes.give_back(2) == 2
    assert [cache.cached(text) for text in ("xy", "abc")] == [0, 3]
    assert cache.prefixes.give_back(9) == 2
    assert cache.cached("abc") == 0
    assert cache.pool.writable(third)
    assert cache.pool.free_count == 31


def test_a_prefix_of_any_length_is_forgotten() -> None:
    cache = Cache(pages=1500, limit=1500)
    cache.insert("a" * 1500)
    cache.pool.free(cache.match("a" * 1500).pages[:1])
    assert cache.prefixes.give_back(1) == 1
    assert cache.prefixes.page_count == 0


def test_a_cleared_cache_leaves_the_sequences_their_pages() -> None:
    cache = Cache()
    cache.insert("abc")
    held = cache.match("ab").pages
    cache.prefixes.clear()
    assert cache.match("abc") == Match((), 0)
    assert all(map(cache.pool.writable, held))
    assert (cache.prefixes.page_count, cache.pool.free_count) == (0, 30)
    cache.insert("ab")
    assert cache.cached("ab") == 2
