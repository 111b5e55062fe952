"""Records as token ids, where the loss counts, and documents end to end."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from chatml import CHATML, SYSTEM, chatml_tokenizer
from tokenizers import Tokenizer, processors

from modularbase_core.errors import DataError
from modularbase_core.text.template import CONTROL_TOKENS
from modularbase_core.train import encoding
from modularbase_core.train.corpus import Record
from modularbase_core.train.encoding import Encoder, encode_sources, join
from modularbase_core.train.recipe import Source
from modularbase_core.train.tokenizer import train_tokenizer
from modularbase_core.train.tokens import controls_in


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["the quick brown fox jumps over the lazy dog", "敏捷的棕色狐狸跳过懒狗", "def f(x):\n    return x"] * 5
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def chat(prompt: str, response: str) -> Record:
    return Record(None, ({"role": "user", "content": prompt}, {"role": "assistant", "content": response}), "en", "test")


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


def test_records_encoded_together_are_as_one_by_one(tokenizer: Tokenizer) -> None:
    records = [chat("the quick", ""), Record("the lazy dog", (), "en", ""), chat("敏捷", "fox <|end|>")]
    for response_only in (False, True):
        encoder = Encoder(tokenizer, response_only=response_only)
        assert encoder.encode_all(records) == [encoder.encode(record) for record in records]
    assert encoder.encode_all([]) == []


def test_what_a_tokenizer_of_others_would_put_around_texts_or_cut_off_is_left_out(tokenizer: Tokenizer) -> None:
    expected = Encoder(tokenizer, response_only=False).encode(chat("the quick", "brown fox"))
    theirs = Tokenizer.from_str(tokenizer.to_str())
    begin = ("<|begin|>", theirs.token_to_id("<|begin|>"))
    theirs.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[begin])
    theirs.enable_truncation(2)
    theirs.enable_padding(length=9)
    encoder = Encoder(theirs, response_only=False)
    assert encoder.encode(chat("the quick", "brown fox")) == expected
    assert encoder.encode_all([chat("the quick", "brown fox")]) == [expected]


def test_more_text_than_memory_holds_is_refused_with_the_way_out(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("the dog " * 200)
    monkeypatch.setattr(encoding, "LARGEST_BYTES", 1000)
    with pytest.raises(
        DataError, match=r"a\.txt hold some .* GB of text, more .*; make shards .* `modularbase data pre"
    ):
        encode_sources([Source(files=("a.txt",), tokens=5)], tmp_path, tokenizer, response_only=False, seed=0)


def test_pages_and_folders_are_sources_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/a.md").write_text("---\nx: 1\n---\n# the fox")
    (tmp_path / "pages/b.txt").write_text("the dog")
    for files in (("pages",), ("pages/*",), ("pages/a.md", "pages/b.txt")):
        source = Source(files=files, tokens=1000)
        documents = encode_sources([source], tmp_path, tokenizer, response_only=False, seed=0)
        said = {tokenizer.decode(list(ids), skip_special_tokens=True) for ids, _ in documents}
        assert said == {"# the fox", "the dog"}
