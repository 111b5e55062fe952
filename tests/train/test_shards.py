"""Shards come back as they were written, or one sentence says what is wrong with them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_packs import TOKENIZER
from tokenizers import Tokenizer, normalizers

from modularbase_core.errors import DataError
from modularbase_core.text.controls import template_beside
from modularbase_core.train.encoding import join
from modularbase_core.train.shards import (
    Index,
    MappedShard,
    fingerprint,
    holds_shards,
    map_shards,
    read_index,
    write_index,
    write_shard,
)
from modularbase_core.train.tokens import controls_in

DOCUMENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=20), min_size=1, max_size=12
)


def joined(documents):
    return join(([token for token, _ in one], [learn for _, learn in one]) for one in documents)


def written(folder, count=3, vocabulary_size=400):
    folder.mkdir(exist_ok=True)
    documents = joined([[(number + token, token % 3 > 0) for token in range(9)] for number in range(5)])
    shards = [write_shard(folder, f"train-{number:05}", "train", documents, vocabulary_size) for number in range(count)]
    index = Index(
        tokenizer="nano",
        fingerprint="f",
        vocabulary_size=vocabulary_size,
        response_only=False,
        messages=0,
        duplicates=2,
        asked="a",
        sources=[{"name": "a.txt", "bytes": 9, "records": 5}],
        shards=shards,
    )
    write_index(folder, index)
    return index


@settings(max_examples=40)  # each syncs three files
@given(DOCUMENTS, st.sampled_from([400, 70_000]), st.data())
def test_documents_come_back_bit_by_bit_from_any_place(tmp_path_factory, documents, vocabulary_size, data):
    folder = tmp_path_factory.getbasetemp() / "roundtrip"
    folder.mkdir(exist_ok=True)
    whole = joined(documents)
    shard = MappedShard(folder, write_shard(folder, "train-00000", "train", whole, vocabulary_size))
    first = data.draw(st.integers(0, len(documents) - 1))
    end = data.draw(st.integers(first + 1, len(documents)))
    got, expected = shard.read(first, end), joined(documents[first:end])
    assert got.ids.tolist() == expected.ids.tolist()
    assert got.ids.dtype == (np.uint16 if vocabulary_size == 400 else np.uint32)
    assert got.learn.tolist() == expected.learn.tolist()
    assert got.starts.tolist() == expected.starts.tolist()
    assert not got.whole.any()


def test_an_index_comes_back_and_counts(tmp_path):
    index = written(tmp_path / "shards")
    assert holds_shards(tmp_path / "shards")
    assert not holds_shards(tmp_path)
    got = read_index(tmp_path / "shards")
    assert got == index
    assert (got.tokens("train"), got.tokens("valid"), len(got.of("train"))) == (135, 0, 3)
    assert len(list(map_shards(tmp_path / "shards", got, "train"))) == 3


def test_a_shard_that_changed_is_one_sentence_before_anything_is_learnt(tmp_path):
    index = written(tmp_path)
    path = tmp_path / "train-00001.learn.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    read_index(tmp_path)
    first, second, _ = map_shards(tmp_path, index, "train")
    first.read(0, 2)
    with pytest.raises(DataError, match=r"train-00001\.learn\.npy has changed since it was written; prepare the"):
        second.read(0, 2)


def test_a_shard_that_is_missing_or_cut_short_is_one_sentence(tmp_path):
    written(tmp_path)
    path = tmp_path / "train-00002.ids.npy"
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DataError, match=r"train-00002\.ids\.npy is missing or of another size than the index says"):
        read_index(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"train-00002\.ids\.npy is missing"):
        read_index(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}', '{"format": "modularbase-shards-1"}', "null"])
def test_an_index_that_is_none_is_one_sentence(tmp_path, content):
    (tmp_path / "shards.json").write_text(content)
    with pytest.raises(DataError, match=r"shards\.json is no index of shards \(.+\); prepare them again"):
        read_index(tmp_path)


def test_no_index_and_an_unfinished_one_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"shards\.json cannot be read \(No such file or directory\); prepare the sha"):
        read_index(tmp_path)
    (tmp_path / "unfinished.json").write_text("{}")
    with pytest.raises(DataError, match="are not finished; run `modularbase data prepare` again, to its end"):
        holds_shards(tmp_path)


def test_a_fingerprint_is_of_the_vocabulary_of_how_texts_are_cut_and_of_the_template():
    first, same, cut, more = (Tokenizer.from_file(str(TOKENIZER)) for _ in range(4))
    controls = controls_in(first)
    assert fingerprint(first, controls) == fingerprint(same, controls_in(same, template_beside(TOKENIZER)))
    cut.normalizer = normalizers.Lowercase()
    more.add_tokens(["modularbase"])
    value = json.loads(same.to_str())
    value["model"]["merges"] = value["model"]["merges"][::-1]
    merged = Tokenizer.from_str(json.dumps(value))
    others = {fingerprint(one, controls_in(one)) for one in (first, cut, more, merged)}
    assert len(others) == 4
    assert fingerprint(first, replace(controls, text_end=())) not in others
