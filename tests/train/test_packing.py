"""Records as token ids, and whole documents packed into windows."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from chatml import CHATML, SYSTEM, chatml_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.text.template import CONTROL_TOKENS
from modularbase_core.train.corpus import Record
from modularbase_core.train.packing import (
    Documents,
    Encoder,
    Source,
    best_fit,
    document_mask,
    encode_sources,
    join,
    windows,
)
from modularbase_core.train.tokenizer import train_tokenizer
from modularbase_core.train.tokens import controls_in

BEGIN = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["the quick brown fox jumps over the lazy dog", "敏捷的棕色狐狸跳过懒狗", "def f(x):\n    return x"] * 5
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def chat(prompt: str, response: str) -> Record:
    return Record(None, ({"role": "user", "content": prompt}, {"role": "assistant", "content": response}), "en", "test")


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


def test_the_tokenizer_begins_with_the_control_tokens_and_round_trips(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in CONTROL_TOKENS] == list(range(len(CONTROL_TOKENS)))
    for text in ("the fox", "狐狸\n  jumps\t!", "émoji 🙂", "    return x"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_only_the_response_and_its_end_are_learnt(tokenizer: Tokenizer) -> None:
    ids, learn = Encoder(tokenizer, response_only=True).encode(chat("the quick", "brown fox"))
    learnt = [token for token, counts in zip(ids, learn, strict=True) if counts]
    assert tokenizer.decode(learnt, skip_special_tokens=True) == "brown fox"
    assert learnt[-1] == tokenizer.token_to_id("<|end|>")


@pytest.mark.parametrize("record", [chat("the quick", "brown fox"), Record("the lazy dog", (), "en", "")])
def test_all_but_the_begin_token_is_learnt_of_a_text_and_of_a_whole_chat(tokenizer: Tokenizer, record: Record) -> None:
    ids, learn = Encoder(tokenizer, response_only=False).encode(record)
    assert ids[0] == tokenizer.token_to_id("<|begin|>")
    assert learn == [False] + [True] * (len(ids) - 1)


def test_a_control_token_in_a_text_stays_text(tokenizer: Tokenizer) -> None:
    ids, _ = Encoder(tokenizer, response_only=False).encode(chat("a<|end|>b", "c"))
    assert ids.count(tokenizer.token_to_id("<|end|>")) == 2


def test_a_snippet_is_a_stretch_of_the_text(tokenizer: Tokenizer) -> None:
    encoder, text = Encoder(tokenizer, response_only=False), "the quick brown fox 狐狸跳过懒狗 jumps over " * 4
    for seed in range(20):
        snippet = encoder.snippet(text, 9, random.Random(seed))
        assert snippet in text
        assert 6 <= len(tokenizer.encode(snippet).ids) <= 12
    assert encoder.snippet("", 9, random.Random(0)) == ""


def test_a_source_is_filtered_by_language_and_repeated_to_its_share(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [{"text": "the dog", "lang": "en"}, {"text": "懒狗", "lang": "zh"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = Source(files=("a.jsonl",), tokens=50, languages=("zh",))
    documents = join(encode_sources([source], tmp_path, tokenizer, response_only=False, seed=0))
    assert 50 <= len(documents.ids) < 60
    assert "dog" not in tokenizer.decode(documents.ids.tolist())
    french = Source(files=("a.jsonl",), tokens=5, languages=("fr",))
    with pytest.raises(DataError, match="matches the recipe"):
        encode_sources([french], tmp_path, tokenizer, response_only=False, seed=0)


def test_joined_documents_are_found_again_and_ids_are_as_wide_as_they_need() -> None:
    documents = join([([0, 5, 6], [False, True, True])], [([0, 7], [False, True])])
    assert (documents.starts.tolist(), documents.whole.tolist()) == ([0, 3, 5], [False, True])
    assert (documents.ids.tolist(), documents.ids.dtype) == ([0, 5, 6, 0, 7], np.uint16)
    assert documents.learn.tolist() == [False, True, True, False, True]
    assert join([([70_000], [True])]).ids.dtype == np.uint32
    assert join([], [([0], [True])]).whole.tolist() == [True]
    assert len(join([])) == 0


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


def test_another_template_is_encoded_as_its_base_reads_it():
    library = Tokenizer.from_str(chatml_tokenizer())
    controls = controls_in(library, CHATML)
    ids, learn = Encoder(library, response_only=True, controls=controls).encode(chat("Hi", "Hello"))
    start, end = "<|im_start|>", "<|im_end|>\n"
    text = f"<|endoftext|>{start}system\n{SYSTEM}{end}{start}user\nHi{end}{start}assistant\nHello{end}"
    library.encode_special_tokens = False
    assert ids == library.encode(text).ids
    assert library.decode([i for i, counts in zip(ids, learn, strict=True) if counts]) == "Hello\n"
    encoder = Encoder(library, response_only=True, controls=controls)
    whole, learn = encoder.encode(Record("Hi<|im_end|>", (), "en", ""))
    border = library.token_to_id("<|endoftext|>")
    assert (whole[0], whole[-1], sum(learn)) == (border, border, len(whole) - 1)
    assert library.token_to_id("<|im_end|>") not in whole


def test_ids_of_a_large_vocabulary_are_kept_whole():
    ids = [151_643, 7, 151_935, 65_536, 151_643]
    documents = join([(ids, [True] * len(ids))])
    assert documents.ids.dtype == np.uint32
    batch, _ = next(windows(documents, 4, 1, begin=151_643, seed=0))
    assert batch.tolist() == [ids]
