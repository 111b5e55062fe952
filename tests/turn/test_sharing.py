"""Who shares what with whom, case by case; `test_sharing_machine` tells that nothing is ever read amiss."""

from modularbase_core.context.beginning import Beginning, Beginnings
from modularbase_core.context.page import PageTable
from modularbase_core.context.pool import PagePool
from modularbase_core.context.prefix import PrefixCache
from modularbase_core.sdk.architecture import Window
from modularbase_core.turn.fusions import BUILTIN, MEAN, Shares
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.sharing import Sharing

WINDOW = Window(trained_tokens=112, block_tokens=32, recent_tokens=48, sink_tokens=32)
LIMIT = 96
TEXT = list(range(7, 47))


class Model:
    """Sequences over a pool, without a network; copied: (page, page) of each copy."""

    def __init__(self, pages=24, packs=None):
        self.pool = PagePool("hot pages", pages)
        self.cache = PrefixCache(self.pool, pages)
        self.copied = []
        self.shares = Shares(MEAN, 0.3)
        beginnings = Beginnings(self.cache, self.pool, lambda *pair: self.copied.append(pair), b"weights")
        self.sharing = Sharing(beginnings, packs or {}, self.shares)

    def understood(self, token_ids, *packs, sequence=None):
        """A sequence that stands before its packs."""
        sequence = sequence or Sequence(PageTable(WINDOW))
        start = sequence.table.tokens
        self.sharing.adopt(sequence, token_ids)
        rest = token_ids[sequence.table.tokens - start :]
        self.pool.extend(sequence.table, len(rest))
        sequence.advance(rest)
        sequence.route = force(packs or ["chat"])
        return sequence

    def fused(self, token_ids, *packs, sequence=None):
        """A sequence after a turn; `fused` tells how much of it was taken over when it began."""
        sequence = self.understood(token_ids, *packs, sequence=sequence)
        self.sharing.begin_turn(sequence)
        taken, sequence.fused = sequence.fused, sequence.table.tokens
        self.sharing.keep(sequence)
        return sequence, taken


def test_by_the_same_route_all_full_pages_are_shared_but_for_the_last_token():
    model = Model()
    first, taken = model.fused(TEXT)
    assert (first.beginning.shared, taken) == (0, 0)
    second, taken = model.fused(TEXT[:32])
    assert (second.beginning.shared, taken) == (16, 16)
    third, taken = model.fused([*TEXT, 5])
    assert (third.beginning.shared, taken) == (32, 32)
    assert third.table.page_ids[:2] == first.table.page_ids[:2]
    assert not model.copied
    assert model.fused(TEXT, "code", sequence=third)[1] == len(TEXT) + 1, "a later turn goes on from where it stands"


def test_by_another_route_what_was_understood_is_copied():
    model = Model()
    first, _ = model.fused(TEXT, "chat")
    second, taken = model.fused(TEXT, "code")
    assert (second.beginning.shared, taken) == (32, 0)
    assert model.copied == list(zip(first.table.page_ids[:2], second.table.page_ids[:2], strict=True))
    third, taken = model.fused(TEXT, "code")
    assert taken == 32
    assert third.table.page_ids[:2] == second.table.page_ids[:2]


def test_a_route_is_its_packs_their_files_their_weights_and_the_fusion_of_several():
    model = Model(packs={"chat": "digest"})
    assert model.fused(TEXT, "chat", "code")[1] == 0
    assert model.fused(TEXT, "code", "chat")[1] == 0, "the other one leads"
    assert model.fused(TEXT, "chat", "code")[1] == 32
    model.sharing._packs = {"chat": "another digest"}
    assert model.fused(TEXT, "chat", "code")[1] == 0
    model.shares._fusion = BUILTIN[1]
    assert model.fused(TEXT, "chat", "code")[1] == 0
    assert model.fused(TEXT, "code")[1] == 0
    model.shares._fusion = BUILTIN[2]
    assert model.fused(TEXT, "code")[1] == 32, "a single pack is not blended"


def test_what_was_fused_by_two_packs_is_whole_for_nobody_who_asks_anew_and_understood_for_all():
    model = Model(packs={})
    first, _ = model.fused(TEXT, "chat")
    model.fused(TEXT, "code", sequence=first)
    again, taken = model.fused([*TEXT, *TEXT], "chat")
    assert (again.beginning.shared, taken) == (64, 32)
    assert len(model.copied) == 2


def test_nothing_is_shared_from_where_tokens_do_not_see_all_before_them():
    model, long = Model(pages=48), list(range(7, 7 + 3 * LIMIT))
    model.fused(long)
    second = model.understood(long)
    assert second.beginning.shared == LIMIT - 16, "its last token below the limit is computed, and its block ended"
    assert model.cache.page_count == LIMIT // 16


def test_what_is_answered_is_handed_on_too():
    model = Model()
    first, _ = model.fused(TEXT)
    model.pool.extend(first.table, 20)
    first.advance([9] * 20)
    first.fused += 20
    model.sharing.keep(first)
    assert model.fused([*TEXT, *[9] * 20])[1] == 48


def test_a_conversation_that_is_taken_up_from_disk_is_not_handed_on():
    model, one = Model(), Sequence(PageTable(WINDOW))
    one.table.restore(32)
    one.fused = 32
    model.fused(TEXT, sequence=one)
    assert not model.cache.page_count


def test_what_a_fusion_that_failed_made_is_not_handed_on():
    model = Model()
    one = model.understood(TEXT, "chat", "code")
    model.sharing.begin_turn(one)
    model.shares._fusion = BUILTIN[1]  # as where a plugin's raised
    one.fused = one.table.tokens
    model.sharing.keep(one)
    assert not model.cache.page_count


def test_a_turn_that_fails_after_it_was_handed_on_leaves_its_pages_to_others_and_takes_new_ones():
    model = Model()
    for start in (32, 40):  # at the end of a page, and within one
        one, _ = model.fused(TEXT[:start], "code")
        model.fused(TEXT, "code", sequence=one)
        model.sharing.rewind(one, start)
        assert one.table.tokens == start
        model.pool.extend(one.table, 60)  # which refuses to write to what others hold


def test_a_first_turn_that_fails_lets_go_of_what_it_took_over():
    model = Model()
    first, _ = model.fused(TEXT)
    second, _ = model.fused(TEXT)
    model.sharing.rewind(second, 0)
    assert (second.table.page_ids, second.beginning.shared, second.beginning.token_ids) == ([], 0, [])
    model.cache.clear()
    model.fused(TEXT, sequence=second)
    assert model.cache.page_count == 2, "and hands on what it makes then"
    model.pool.release(first.table)
    model.pool.release(second.table)
    model.cache.clear()
    assert model.pool.free_count == 24


def test_where_no_page_is_left_for_a_copy_the_cache_lets_go_and_none_is_needed():
    model = Model(pages=3)
    first, _ = model.fused([7] * 48, "chat")
    model.pool.release(first.table)
    second, taken = model.fused([7] * 48, "code")
    assert (second.beginning.shared, taken) == (32, 0)
    assert not model.copied
    assert model.cache.page_count == 3


def test_routes_are_forgotten_with_the_tokens_they_fused():
    one = Beginning(LIMIT)
    one.note(0, TEXT)
    one.begin_turn(b"chat", 0)
    one.begin_turn(b"code", 40)
    one.rewind(20)
    one.begin_turn(b"law", 20)
    assert (one.token_ids, one.routes) == (TEXT[:20], [(20, b"chat")])
