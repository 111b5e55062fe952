"""Whole documents packed into windows."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.errors import DataError
from modularbase_core.train.encoding import Documents, join
from modularbase_core.train.packing import best_fit, document_mask, windows

BEGIN = 0


def numbered(lengths: list[int], whole: list[int] | None = None) -> Documents:
    """Documents whose tokens are all different, so that each can be found again; those of `whole` may not be cut."""
    made, number = [], 1
    for length in [*lengths, *(whole or [])]:
        made.append(([BEGIN, *range(number, number + length - 1)], [False, *[True] * (length - 1)]))
        number += length - 1
    return join(made[: len(lengths)], made[len(lengths) :])


def one_pass(documents: Documents, length: int) -> list[torch.Tensor]:
    """Return the windows of the first pass: it ends where tokens come again."""
    rows: list[torch.Tensor] = []
    seen: set[int] = set()
    for ids, _ in windows(documents, length, 1, begin=BEGIN, seed=3):
        tokens = {token for token in ids[0].tolist() if token != BEGIN}
        if tokens & seen:
            return rows
        seen |= tokens
        rows.append(ids[0])
    raise AssertionError("windows go on for ever")


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        for number, filled in enumerate(bins):
            if filled + length <= capacity:
                bins[number] += length
                break
        else:
            bins.append(length)
    return len(bins)


@given(st.lists(st.integers(1, 60), max_size=120), st.integers(60, 90))
def test_best_fit_holds_each_piece_once_within_capacity_and_wastes_little(lengths: list[int], capacity: int) -> None:
    bins = best_fit(np.array(lengths, np.int64), capacity)
    assert sorted(number for one in bins for number in one) == list(range(len(lengths)))
    filled = [sum(lengths[number] for number in one) for one in bins]
    assert all(0 < space <= capacity for space in filled)
    assert len(bins) <= 11 / 9 * first_fit_decreasing(lengths, capacity) + 1
    firsts = [lengths[one[0]] for one in bins]
    for number, space in enumerate(filled):  # none was opened for what an earlier one had room for
        assert all(first > capacity - space for first in firsts[number + 1 :])


@given(st.lists(st.integers(2, 90), min_size=1, max_size=30), st.lists(st.integers(2, 90), max_size=6))
def test_a_pass_holds_each_token_once_and_whole_documents_in_one_piece(lengths: list[int], whole: list[int]) -> None:
    length = 40
    documents = numbered(lengths, whole)
    rows = one_pass(documents, length)
    told = sorted(token for row in rows for token in row.tolist() if token != BEGIN)
    fits = [token for token in documents.ids.tolist() if token != BEGIN]
    for first, end, kept in zip(documents.starts, documents.starts[1:], documents.whole, strict=False):
        piece = documents.ids[first:end].tolist()
        if end - first <= length + 1:  # in one window, begun as it should be
            assert sum(piece in [row[at : at + len(piece)].tolist() for at in range(len(row))] for row in rows) == 1
        elif kept:
            fits = [token for token in fits if token not in set(piece)]
    assert told == fits


@given(st.lists(st.integers(2, 90), min_size=1, max_size=30), st.integers(0, 9))
def test_every_piece_begins_with_the_begin_token_and_learns_where_its_document_did(
    lengths: list[int], seed: int
) -> None:
    documents = numbered(lengths)
    learns = dict(zip(documents.ids.tolist(), documents.learn.tolist(), strict=True))
    for _, (ids, learn) in zip(range(5), windows(documents, 40, 1, begin=BEGIN, seed=seed), strict=False):
        assert ids.shape == learn.shape == (1, 41)
        assert (ids.dtype, learn.dtype) == (torch.int64, torch.bool)
        assert ids[0, 0] == BEGIN
        previous = BEGIN
        for token, counts in zip(ids[0].tolist(), learn[0].tolist(), strict=True):
            assert counts == (token != BEGIN and learns[token])
            assert token in (BEGIN, previous + 1) or previous == BEGIN
            previous = token


def test_batches_depend_on_seed_and_number_alone_so_a_run_resumes_where_it_was() -> None:
    documents = numbered([7, 30, 55, 12, 9, 140, 33, 18] * 6, [25, 60])
    whole = windows(documents, 32, 4, begin=BEGIN, seed=3)
    first = [next(whole) for _ in range(60)]
    assert len({tuple(ids.flatten().tolist()) for ids, _ in first}) == 60  # each pass packs anew
    for start in (0, 1, 13, 14, 15, 27, 28, 29, 59):
        ids, learn = next(windows(documents, 32, 4, begin=BEGIN, seed=3, start=start))
        assert torch.equal(ids, first[start][0])
        assert torch.equal(learn, first[start][1])


def test_windows_of_given_seeds_keep_their_bits() -> None:
    """Weights that ship were learnt from them: a change here is a change of what a recipe makes."""
    digest = hashlib.sha256()
    documents = numbered([7, 30, 55, 12, 9, 140, 33, 18] * 6, [25, 60])
    for _, (ids, learn) in zip(range(50), windows(documents, 32, 4, begin=BEGIN, seed=3), strict=False):
        digest.update(ids.numpy().tobytes() + learn.numpy().tobytes())
    assert digest.hexdigest()[:16] == "47df3091e21fb476"


def test_too_little_text_for_one_batch_is_one_sentence() -> None:
    told = "20 tokens fill 1 windows of 500, too few for a batch of 4; give more text, or lower batch_tokens"
    with pytest.raises(DataError, match=told):
        next(windows(numbered([20]), 500, 4, begin=BEGIN, seed=0))


def test_a_token_sees_its_own_document_alone_up_to_itself() -> None:
    mask = document_mask(torch.tensor([[BEGIN, 5, BEGIN, 6, 7]]), BEGIN)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_ids_of_a_large_vocabulary_are_kept_whole():
    ids = [151_643, 7, 151_935, 65_536, 151_643]
    documents = join([(ids, [True] * len(ids))])
    assert documents.ids.dtype == np.uint32
    batch, _ = next(windows(documents, 4, 1, begin=151_643, seed=0))
    assert batch.tolist() == [ids]
