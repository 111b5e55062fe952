"""What a pass takes of shards and of documents in memory, and that a recipe learns from both."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_packs import TOKENIZER
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.train.encoding import Documents, Encoder, join
from modularbase_core.train.material import batches_of, documents_of
from modularbase_core.train.packing import windows
from modularbase_core.train.preparing import Plan, prepare
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.shards import Index, fingerprint, write_index, write_shard
from modularbase_core.train.supply import ShardSource, Supply, together
from modularbase_core.train.tokens import controls_in

LENGTH = 8
SHARDS = 3
DOCUMENTS = 40
TOKENS = SHARDS * DOCUMENTS * LENGTH


def numbered(first, count):
    """Documents of LENGTH tokens, each of its own number."""
    return join(([number] * LENGTH, [True] * LENGTH) for number in range(first, first + count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    shards = [
        write_shard(folder, f"train-{number}", "train", numbered(1 + number * DOCUMENTS, DOCUMENTS), 400)
        for number in range(SHARDS)
    ]
    more = {"fingerprint": "f", "response_only": False, "messages": 0, "duplicates": 0, "asked": "", "sources": []}
    write_index(folder, Index(tokenizer="nano", vocabulary_size=400, shards=shards, **more))
    return folder


def taken(source, lap):
    return [int(one) for block in source.blocks(lap) for one in block.read().ids[::LENGTH]]


def test_passes_go_through_all_of_the_shards_before_anything_comes_again(folder):
    source = ShardSource(folder, TOKENS // 4, seed=1, block_tokens=2 * LENGTH)
    passes = [taken(source, lap) for lap in range(8)]
    first, second = ([one for part in half for one in part] for half in (passes[:4], passes[4:]))
    everything = list(range(1, 1 + SHARDS * DOCUMENTS))
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert passes[5] == taken(ShardSource(folder, TOKENS // 4, seed=1, block_tokens=2 * LENGTH), 5)
    assert passes[0] != taken(ShardSource(folder, TOKENS // 4, seed=2, block_tokens=2 * LENGTH), 0)


def test_a_share_larger_than_the_shards_repeats_them(folder):
    source = ShardSource(folder, TOKENS * 5 // 2, seed=1, block_tokens=LENGTH)
    counts = Counter(taken(source, 0))
    assert len(counts) == SHARDS * DOCUMENTS
    assert set(counts.values()) == {2, 3}


def test_blocks_hold_whole_documents_however_small_they_are(folder):
    for block_tokens in (1, LENGTH, 50, 10**6):
        source = ShardSource(folder, TOKENS, seed=0, block_tokens=block_tokens)
        assert sorted(taken(source, 0)) == list(range(1, 1 + SHARDS * DOCUMENTS))


def test_a_pass_holds_what_is_in_memory_once_and_its_share_of_the_shards_in_parts_of_both(folder):
    source = ShardSource(folder, TOKENS // 2, seed=1, block_tokens=LENGTH)
    supply = Supply(numbered(201, 50), [source], seed=4, part_tokens=22 * LENGTH)
    for lap in (0, 1):
        parts = [part.ids[::LENGTH].tolist() for part in supply.parts(lap)]
        assert len(parts) == 5
        told = [one for part in parts for one in part]
        assert sorted(one for one in told if one > 200) == list(range(201, 251))
        assert sorted(one for one in told if one < 200) == sorted(taken(source, lap))
        assert all(8 <= sum(one > 200 for one in part) <= 12 and len(part) == 22 for part in parts)
    again = Supply(numbered(201, 50), [source], seed=4, part_tokens=22 * LENGTH)
    assert [part.ids.tolist() for part in supply.parts(1)] == [part.ids.tolist() for part in again.parts(1)]


def test_batches_of_shards_depend_on_seed_and_number_alone(folder):
    supply = Supply(numbered(201, 9), [ShardSource(folder, TOKENS, seed=1, block_tokens=30)], 4, 40 * LENGTH)
    whole = windows(supply, 15, 2, begin=0, seed=3)
    first = [next(whole)[0] for _ in range(70)]
    assert len({tuple(batch.flatten().tolist()) for batch in first}) == 70
    for start in (0, 9, 10, 31, 32, 33, 69):
        assert torch.equal(next(windows(supply, 15, 2, begin=0, seed=3, start=start))[0], first[start])


@given(st.lists(st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=4), max_size=4), min_size=1, max_size=4))
def test_parts_together_are_their_documents_in_order(parts):
    made = [
        join([(one, [token % 2 > 0 for token in one]) for one in part], part[:1] and [([1], [True])]) for part in parts
    ]
    whole = together(made)
    flat = [one for part in parts for one in (*part, *(part[:1] and [[1]]))]
    assert [whole.ids[a:b].tolist() for a, b in zip(whole.starts, whole.starts[1:], strict=False)] == flat
    assert whole.learn.tolist() == [one for part in made for one in part.learn]
    assert whole.whole.tolist() == [one for part in made for one in part.whole]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A data folder with texts, chats, and shards of each."""
    root = tmp_path_factory.mktemp("corpus")
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    controls = controls_in(tokenizer)
    words = "The harbour was quiet, and boats lay side by side in the morning light. "
    texts = [json.dumps({"text": f"{number} " + words * 9, "lang": "en"}) for number in range(40)]
    (root / "texts.jsonl").write_text("\n".join(texts))
    chats = [json.dumps({"prompt": f"add {number}", "response": f"that is {number}"}) for number in range(40)]
    (root / "chats.jsonl").write_text("\n".join(chats))
    for name, response_only in (("texts", False), ("chats", True)):
        plan = Plan(
            inputs=(root / f"{name}.jsonl",),
            tokenizer="nano",
            fingerprint=fingerprint(tokenizer, controls),
            vocabulary_size=8192,
            response_only=response_only,
            shard_tokens=1000,
        )
        prepare(plan, root / name, Encoder(tokenizer, response_only=response_only, controls=controls))
    return root


def recipe(**more):
    given = {"tokens": 8192, "batch_tokens": 512, "windows": ((0.5, 128), (0.5, 256)), "tokenizer": str(TOKENIZER)}
    return Recipe(name="x", stage="base", **{**given, **more})


def mixed(*entries, tokens=3000, **more):
    return tuple(
        Source(files=files if isinstance(files, tuple) else (files,), tokens=tokens, **more) for files in entries
    )


def test_shards_give_the_documents_that_their_texts_do(corpus):
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    size = len(documents_of(recipe(mix=mixed("texts.jsonl", tokens=1)), corpus, tokenizer).ids)
    shards = documents_of(recipe(mix=mixed("texts", tokens=10**6)), corpus, tokenizer)
    files = documents_of(recipe(mix=mixed("texts.jsonl", tokens=size * 35)), corpus, tokenizer)
    assert isinstance(files, Documents)
    assert isinstance(shards, Supply)
    (part,) = shards.parts(0)
    assert _texts(files) <= _texts(part)
    assert len(_texts(part)) == 40


def _texts(documents):
    ends = zip(documents.starts, documents.starts[1:], strict=False)
    return {(documents.ids[a:b].tobytes(), documents.learn[a:b].tobytes()) for a, b in ends}


def test_a_recipe_learns_from_shards_beside_files_with_recall_and_needles_and_resumes(corpus):
    asked = recipe(mix=mixed("texts", "chats.jsonl"), recall_tokens=900, needle_tokens=900)
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    batches = list(batches_of(asked, documents_of(asked, corpus, tokenizer), 0, 0))
    assert [tuple(ids.shape) for ids, _ in batches] == [(4, 129)] * 8 + [(2, 257)] * 8
    later = list(batches_of(asked, documents_of(asked, corpus, tokenizer), 0, 11))
    assert all(
        torch.equal(a, b) for one, two in zip(batches[11:], later, strict=True) for a, b in zip(one, two, strict=True)
    )
    seen = tokenizer.decode(np.unique(torch.cat([ids.flatten() for ids, _ in batches]).numpy()).tolist())
    assert "morning" in seen


def test_recall_and_needles_are_made_of_shards_alone_too(corpus):
    asked = recipe(mix=mixed("texts"), recall_tokens=500, needle_tokens=500)
    supply = documents_of(asked, corpus, Tokenizer.from_file(str(TOKENIZER)))
    assert 1000 <= len(supply.documents.ids) < 3000
    assert supply.documents.whole.all()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"mix": mixed("chats")}, r"chats were made with --response-only, but the recipe says response_only = false"),
        ({"mix": mixed("texts", languages=("zh", "fr"))}, "prepare them with --language zh --language fr, and leave"),
        (
            {"mix": mixed("texts", sections=True)},
            "texts know no headings; give the pages themselves where sections = true",
        ),
        ({"mix": mixed(("texts", "chats.jsonl"))}, "are shards and other files; give each a .* of its own"),
        ({"mix": mixed("other")}, r"made with another tokenizer or chat template \(odd\) than the recipe's; prepare"),
    ],
)
def test_shards_that_do_not_fit_the_recipe_are_one_sentence(corpus, more, told):
    (corpus / "other").mkdir(exist_ok=True)
    shards = [write_shard(corpus / "other", "train-0", "train", numbered(1, 9), 400)]
    made = {"fingerprint": "f", "response_only": False, "messages": 0, "duplicates": 0, "asked": "", "sources": []}
    write_index(corpus / "other", Index(tokenizer="odd", vocabulary_size=400, shards=shards, **made))
    with pytest.raises(DataError, match=told):
        documents_of(recipe(**more), corpus, Tokenizer.from_file(str(TOKENIZER)))


def test_shards_of_texts_alone_do_for_a_recipe_that_learns_responses(corpus):
    assert documents_of(recipe(mix=mixed("texts"), response_only=True), corpus, Tokenizer.from_file(str(TOKENIZER)))
