import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.text.template import CONTROL_TOKENS
from modularbase_core.train.corpus import Record, read_records
from modularbase_core.train.packing import Encoder, Source, Tokens, pack_sources, windows
from modularbase_core.train.recall import recall_documents
from modularbase_core.train.tokenizer import train_tokenizer


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


def test_a_control_token_in_a_text_stays_text(tokenizer: Tokenizer) -> None:
    ids, _ = Encoder(tokenizer, response_only=False).encode(chat("a<|end|>b", "c"))
    assert ids.count(tokenizer.token_to_id("<|end|>")) == 2


def test_records_of_every_form_are_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "t"}) + "\n" + json.dumps({"prompt": "p", "response": "r"}) + "\n\n")
        file.write(json.dumps({"messages": [{"role": "user", "content": "u"}]}) + "\n")
    assert [record.text for record in read_records(path)] == ["t", None, None]
    path = tmp_path / "b.jsonl"
    path.write_text('{"text": "t"}\n{"text": \n')
    with pytest.raises(DataError, match=r"b\.jsonl:2 is not JSON"):
        list(read_records(path))
    with pytest.raises(DataError, match="does not exist"):
        list(read_records(tmp_path / "none.jsonl"))


def test_a_source_is_filtered_by_language_and_repeated_to_its_share(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [{"text": "the dog", "lang": "en"}, {"text": "懒狗", "lang": "zh"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = Source(files=("a.jsonl",), tokens=50, languages=("zh",))
    tokens = pack_sources([source], tmp_path, tokenizer, response_only=False, longest=64, seed=0)
    assert len(tokens) >= 50
    assert "dog" not in tokenizer.decode(tokens.ids.tolist())
    with pytest.raises(DataError, match="matches the recipe"):
        pack_sources(
            [Source(files=("a.jsonl",), tokens=5, languages=("fr",))],
            tmp_path,
            tokenizer,
            response_only=False,
            longest=64,
            seed=0,
        )


def test_batches_depend_on_seed_and_number_alone_so_a_run_resumes_where_it_was() -> None:
    tokens = Tokens(np.arange(1000, dtype=np.uint16), np.ones(1000, np.bool_))
    whole = windows(tokens, 16, 4, seed=3)
    first = [next(whole)[0] for _ in range(40)]  # more than one pass over the data
    for start in (0, 5, 14, 15, 39):
        assert torch.equal(next(windows(tokens, 16, 4, seed=3, start=start))[0], first[start])
    seen = torch.cat(first[:15])[:, :-1].flatten()
    assert len(seen.unique()) == len(seen)
    with pytest.raises(DataError, match="too few"):
        next(windows(tokens, 500, 4, seed=0))


def test_recall_documents_repeat_what_they_showed_and_learn_only_that() -> None:
    tokens = Tokens(np.arange(5, 4000, dtype=np.uint16), np.ones(3995, np.bool_))
    for ids, learn in recall_documents(tokens, 5000, 0, 1, control=5, seed=1):
        assert len(ids) == len(learn)
        learnt = [token for token, counts in zip(ids, learn, strict=True) if counts]
        shown = ids[1 : learn.index(True)]
        assert learnt
        assert set(learnt) <= set(shown)
        assert ids[-1] == 1
