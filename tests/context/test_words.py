"""The words of a question against a plain definition of which pages hold them."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularbase_core.context.words import COMMON, FEW, WORTH, WordIndex

VOCABULARY = 30

pages_of_tokens = st.dictionaries(
    st.integers(5, 60), st.lists(st.integers(-1, VOCABULARY - 1), min_size=16, max_size=16), max_size=30
)
questions = st.lists(st.integers(-1, VOCABULARY - 1), max_size=12)


def index_of(pages):
    index = WordIndex(VOCABULARY)
    index.add_many(list(pages), np.array(list(pages.values()), np.int32).reshape(-1, 16))
    return index


def defined(pages, question, before, count, without=()):
    """The definition, read off the docstring: a loop over pairs."""
    pages = {number: set(tokens) - {-1} for number, tokens in pages.items() if number < before}
    weight = {}
    for token in set(question) - {-1}:
        holding = sum(token in tokens for tokens in pages.values())
        if 0 < holding <= max(FEW, COMMON * len(pages)):
            weight[token] = max(0.0, round(math.log((len(pages) - holding + 0.5) / (holding + 0.5)) * 2**20) / 2**20)

    def says(*numbers):
        tokens = set().union(*(pages.get(number, set()) for number in numbers))
        return sum(weight.get(token, 0.0) for token in tokens)

    scores = {number: says(number, number + 1) for number in pages}
    best = max(scores.values(), default=0.0)
    if best <= 0:
        return []
    found = []
    for number in sorted(scores, key=lambda number: (-scores[number], -says(number), number)):
        if scores[number] >= WORTH * best:
            for one in sorted((number, number + 1), key=lambda one: -says(one)):
                if one in pages and one not in without and one not in found:
                    found.append(one)
    return found[:count]


def text_of(random, page_count, vocabulary):
    """Words as often as in a text: half of it is a few of them."""
    return np.minimum(random.zipf(1.3, (page_count, 16)), vocabulary - 1).astype(np.int32)


@settings(deadline=None)
@given(pages_of_tokens, questions, st.integers(0, 65), st.integers(0, 20), st.sets(st.integers(0, 65), max_size=8))
def test_a_search_is_its_definition(pages, question, before, count, without) -> None:
    found = index_of(pages).search(question, before=before, count=count, without=without)
    assert found.dtype == np.int64
    assert found.tolist() == defined(pages, question, before, count, without)


@settings(deadline=None)
@given(pages_of_tokens, questions, st.randoms(use_true_random=False), st.sets(st.integers(5, 60)))
def test_neither_order_nor_what_was_removed_matters(pages, question, random, removed) -> None:
    numbers = list(pages)
    random.shuffle(numbers)
    index = WordIndex(VOCABULARY)
    for number in numbers:
        index.add(number, pages[number])
        if number in removed:
            index.search(question, before=61, count=3)
            index.remove(number)
    left = {number: tokens for number, tokens in pages.items() if number not in removed}
    assert [number for number in range(70) if number in index] == sorted(left)
    assert len(index) == len(left)
    found = index.search(question, before=61, count=16).tolist()
    assert found == index_of(left).search(question, before=61, count=16).tolist()
    for number in removed & set(pages):
        index.add(number, pages[number])
    assert index.search(question, before=61, count=16).tolist() == defined(pages, question, 61, 16)


def test_a_planted_sentence_is_found_in_a_long_text_where_it_straddles_two_pages() -> None:
    random = np.random.default_rng(3)
    text = text_of(random, 5000, 2000)
    sentence = random.choice(np.arange(1000, 2000), 12, replace=False)
    text.reshape(-1)[1234 * 16 + 10 : 1234 * 16 + 22] = sentence
    index = WordIndex(2000)
    index.add_many(range(5000), text)
    question = [1, 2, 3, *sentence, 4, 5, -1]
    found = index.search(question, before=5000, count=16)
    assert set(found[:2].tolist()) == {1234, 1235}
    assert found.tolist() == defined(dict(enumerate(text.tolist())), question, 5000, 16)


def test_the_answer_comes_with_the_page_that_names_it() -> None:
    pages = {number: [1, 2] * 8 for number in range(20)}
    pages[7] = [1, 2] * 7 + [21, 22]
    assert index_of(pages).search([21, 22], before=20, count=2).tolist() == [7, 8]
    assert index_of(pages).search([21, 22], before=20, count=16).tolist() == [7, 8, 6]


def test_a_page_in_view_does_not_come_but_its_words_count_for_the_next() -> None:
    pages = {number: [1, 2] * 8 for number in range(20)}
    pages[7] = [21] * 16
    pages[8] = [22] * 16
    pages[12] = [23] * 16
    question = [21, 22, 23]
    assert index_of(pages).search(question, before=20, count=16, without={7}, worth=0.9).tolist() == [8]
    assert index_of(pages).search(question, before=20, count=16, without={7, 8}, worth=0.9).size == 0


def test_words_of_every_page_find_nothing() -> None:
    pages = {number: [1, 2] * 8 for number in range(40)}
    assert index_of(pages).search([1, 2], before=40, count=16).size == 0


def test_what_says_little_beside_the_best_stays_away_unless_asked_for() -> None:
    pages = {number: [1, 2] * 8 for number in range(40)}
    pages[10] = [21, 22, 23] + [1] * 13
    pages[30] = [21] + [1] * 15
    index = index_of(pages)
    assert index.search([21, 22, 23], before=40, count=16).tolist() == [10, 11, 9]
    assert index.search([21, 22, 23], before=40, count=16, worth=0.1).tolist() == [10, 11, 9, 30, 31, 29]


def test_nothing_comes_from_nothing() -> None:
    empty, held = WordIndex(VOCABULARY), index_of({5: [-1] * 16, 6: list(range(16))})
    empty.add_many([], np.zeros((0, 16), np.int32))
    assert empty.search([1, 2], before=10, count=4).size == 0
    assert held.search([], before=10, count=4).size == 0
    assert held.search([-1, VOCABULARY], before=10, count=4).size == 0
    assert held.search([1], before=5, count=4).size == held.search([1], before=10, count=0).size == 0


@pytest.mark.parametrize(("vocabulary", "itemsize"), [(65_535, 2), (65_536, 4)])
def test_the_last_token_of_a_vocabulary_is_found_and_a_token_takes_the_bytes_told(vocabulary, itemsize) -> None:
    text = np.arange(4096 * 16, dtype=np.int32).reshape(4096, 16) % 1000
    text[9, 3] = vocabulary - 1
    tracemalloc.start()
    index = WordIndex(vocabulary)
    index.add_many(range(4096), text)
    taken = tracemalloc.get_traced_memory()[0] - 4 * vocabulary
    tracemalloc.stop()
    assert index.search([vocabulary - 1], before=4096, count=1).tolist() == [9]
    assert index.bytes_per_token == itemsize + 1 / 16
    assert taken / text.size == pytest.approx(index.bytes_per_token, rel=0.05)


def test_a_conversation_that_forgets_its_beginning_does_not_grow() -> None:
    index = WordIndex(VOCABULARY)
    for number in range(2000):
        index.add(number, [number % 7 + 20] + [1] * 15)
        if number >= 30:
            index.remove(number - 30)
    assert len(index) == 30
    assert len(index._tokens) <= 64
    assert set(index.search([20], before=2000, count=3, worth=1).tolist()) <= set(range(1970, 2000))


def test_our_own_mistakes_are_caught() -> None:
    index = index_of({5: [1] * 16})
    with pytest.raises(AssertionError, match="a page is added twice"):
        index.add(5, [1] * 16)
    with pytest.raises(AssertionError, match="a page is added twice"):
        index.add_many([6, 6], [[1] * 16] * 2)
    with pytest.raises(AssertionError, match="page 6 is not held"):
        index.remove(6)
    with pytest.raises(AssertionError, match="token 30 in a vocabulary of 30"):
        index.add(6, [30] * 16)
    with pytest.raises(AssertionError, match=r"tokens of \(1, 15\)"):
        index.add(6, [1] * 15)
