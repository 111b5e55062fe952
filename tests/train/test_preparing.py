"""Shards of whatever there is: each record once, and the same ones however often it was interrupted."""

import json
import lzma
import re
from dataclasses import replace

import numpy as np
import pytest
from tiny_packs import TOKENIZER
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.train import preparing
from modularbase_core.train.corpus import read_records
from modularbase_core.train.encoding import Encoder, join
from modularbase_core.train.preparing import Plan, prepare
from modularbase_core.train.shards import map_shards, read_index

TEXTS = [f"text number {number} " * (1 + number % 7) for number in range(60)]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(Tokenizer.from_file(str(TOKENIZER)), response_only=False)


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    rows = [{"text": text, "lang": "en" if number % 2 else "zh"} for number, text in enumerate(TEXTS)]
    rows += [{"prompt": "why", "response": "because", "lang": "en"}, rows[3], rows[4]]
    with lzma.open(folder / "a.jsonl.xz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    (folder / "b.md").write_text("# Title\n\nThe page.")
    (folder / "c.txt").write_text(TEXTS[5].strip())
    return folder


def plan(*inputs, **more):
    return Plan(inputs=inputs, tokenizer="nano", fingerprint="f", vocabulary_size=8192, **more)


def documents_in(folder, split="train"):
    index = read_index(folder)
    parts = [shard.read(0, shard.shard.documents) for shard in map_shards(folder, index, split)]
    out = []
    for part in parts:
        for first, end in zip(part.starts, part.starts[1:], strict=False):
            out.append((part.ids[first:end].tolist(), part.learn[first:end].tolist()))
    return out


def test_shards_hold_each_record_once_in_order(inputs, tmp_path, encoder):
    seen, told = [], []
    index = prepare(
        plan(inputs, shard_tokens=300), tmp_path / "out", encoder, lambda *now: seen.append(now), told.append
    )
    records = list(dict.fromkeys(record.whole for record in read_records(inputs)))
    assert len(records) == 63  # "text number 5 " ends with a blank in one file alone
    expected = [encoder.encode(record) for record in read_records(inputs)]
    unique = list({tuple(ids): (ids, learn) for ids, learn in expected}.values())
    assert documents_in(tmp_path / "out") == unique
    assert (index.duplicates, index.messages) == (2, 1)
    assert [source["records"] for source in index.sources] == [61, 1, 1]
    assert index.tokens("train") == len(join(expected).ids) - sum(len(expected[at][0]) for at in (61, 62))
    sizes = [path.stat().st_size for path in sorted(inputs.iterdir())]
    assert seen[-1] == ("tokenising", sum(sizes), sum(sizes))
    assert told == []
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] + [".npy"] * 3 * len(index.shards)


class Stopped(Exception):  # noqa: N818
    """What an interruption is in these tests."""


class Breaking:
    """An encoder that is interrupted at every batch but the first `left`."""

    def __init__(self, encoder, left):
        self._encoder, self._left = encoder, left

    def encode_all(self, records):
        if not self._left:
            raise Stopped
        self._left -= 1
        return self._encoder.encode_all(records)


@pytest.mark.parametrize("batches", [[0], [1], [2, 1], [5, 2], [9], [3, 3, 3]])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_shards(batches, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(preparing, "BATCH_RECORDS", 4)
    lines = [json.dumps({"text": text}) for text in TEXTS[:40]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:22]))
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[20:], *lines[:3]]))
    asked = plan(tmp_path / "a.jsonl", tmp_path / "b.jsonl", shard_tokens=100, validation=0.2)
    whole, told = prepare(asked, tmp_path / "whole", encoder), []
    for left in batches:
        with pytest.raises(Stopped):
            prepare(asked, tmp_path / "broken", Breaking(encoder, left), tell=told.append)
        assert not (tmp_path / "broken/shards.json").exists()
    assert prepare(asked, tmp_path / "broken", encoder, tell=told.append) == whole
    assert (len(whole.of("train")) > 3, whole.duplicates) == (True, 5)
    assert all(re.fullmatch("going on after [1-9][0-9]* tokens, which are in whole shards", one) for one in told)
    assert bool(told) == (sum(batches) > 3)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "broken").iterdir())) == len(list((tmp_path / "whole").iterdir()))


def test_a_finished_run_is_left_as_it_is_and_another_is_refused(inputs, tmp_path, encoder):
    out, told = tmp_path / "out", []
    first = prepare(plan(inputs), out, encoder)
    assert prepare(plan(inputs), out, None, tell=told.append) == first
    assert told == [f"{out} is complete; nothing is left to do"]
    for other in (plan(inputs, response_only=True), plan(inputs / "b.md"), replace(plan(inputs), fingerprint="g")):
        with pytest.raises(DataError, match="holds shards of other inputs or settings, or of inputs that have changed"):
            prepare(other, out, encoder)
    with (inputs / "c.txt").open("a") as file:
        file.write("more")
    with pytest.raises(DataError, match="inputs that have changed; name another --out, or remove it"):
        prepare(plan(inputs), out, encoder)


def test_an_unfinished_run_of_something_else_is_refused(inputs, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(preparing, "BATCH_RECORDS", 8)
    out = tmp_path / "out"
    (inputs / "d.jsonl").write_text('{"txt": 1}')
    with pytest.raises(DataError, match=r"d\.jsonl:1 has none of text"):
        prepare(plan(inputs, shard_tokens=50), out, encoder)
    assert (out / "unfinished.json").exists()
    with pytest.raises(DataError, match="holds an unfinished run of other inputs or settings"):
        prepare(plan(inputs, shard_tokens=60), out, encoder)
    (out / "unfinished.json").write_text("{")
    with pytest.raises(DataError, match=r"unfinished\.json cannot be read \(.+\); remove .+ and begin anew"):
        prepare(plan(inputs, shard_tokens=50), out, encoder)


def test_a_folder_of_something_else_is_not_written_into(inputs, tmp_path, encoder):
    with pytest.raises(DataError, match="holds other files; name a new folder as --out"):
        prepare(plan(inputs), inputs, encoder)
    with pytest.raises(DataError, match=r"shards cannot be written to .+ \(Not a directory\); see to that"):
        prepare(plan(inputs), inputs / "b.md/x", encoder)


def test_what_is_held_back_depends_on_what_a_record_says_alone(inputs, tmp_path, encoder):
    prepare(plan(inputs, validation=0.3), tmp_path / "a", encoder)
    prepare(plan(inputs / "c.txt", inputs / "*.xz", validation=0.3), tmp_path / "b", encoder)
    valid, train = documents_in(tmp_path / "a", "valid"), documents_in(tmp_path / "a")
    assert 8 < len(valid) < 30
    assert len(valid) + len(train) == 63
    assert not [one for one in documents_in(tmp_path / "b", "valid") if one in train]


def test_only_records_of_the_languages_asked_for_are_taken(inputs, tmp_path, encoder):
    index = prepare(plan(inputs, languages=("en",)), tmp_path / "a", encoder)
    assert sum(shard.documents for shard in index.shards) == 31
    with pytest.raises(DataError, match="there is no record in fr to make shards of; check the inputs"):
        prepare(plan(inputs, languages=("fr",)), tmp_path / "b", encoder)
    assert not (tmp_path / "b").exists()


def test_a_large_vocabulary_has_wide_ids(inputs, tmp_path, encoder):
    prepare(replace(plan(inputs), vocabulary_size=70_000), tmp_path / "out", encoder)
    assert np.load(tmp_path / "out/train-00000.ids.npy").dtype == np.uint32


def test_shares_and_sizes_that_make_no_sense_are_refused(inputs):
    with pytest.raises(DataError, match="held back for validation is 1; give 0 or more, less than 1"):
        plan(inputs, validation=1.0)
    with pytest.raises(DataError, match="a shard of 0 tokens holds nothing"):
        plan(inputs, shard_tokens=0)
