"""How likely records are: as the whole networks say, whatever shares a batch, and blended as a turn blends."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from eager import Eager
from tiny_packs import BASE, PACK, TOKENIZER, WINDOW, manifest, write_pack
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.text.tokenizer import Tokenizer as TextTokenizer
from modularbase_core.train import perplexity as scoring
from modularbase_core.train.corpus import Record
from modularbase_core.train.encoding import Encoder
from modularbase_core.train.perplexity import Likelihood, Scorer, perplexity
from modularbase_core.train.ship import load_shipped
from modularbase_core.turn.fusions import BUILTIN, Shares

LIBRARY = Tokenizer.from_file(str(TOKENIZER))
ENCODER = Encoder(LIBRARY, response_only=True)
PACKS = ("general_chat", "python_code")


def said(prompt, response):
    turns = (("user", prompt), ("assistant", response))
    return Record(None, tuple({"role": role, "content": content} for role, content in turns), "en", "")


RECORDS = [
    Record("A list keeps its order.", (), "en", ""),
    said("What is a list?", "A sequence that can be changed."),
    said("写一首诗", "春眠不觉晓，处处闻啼鸟。"),
    Record("word " * 300, (), "en", ""),
    Record(None, ({"role": "user", "content": "nothing is answered"},), "en", ""),
]


@pytest.fixture(scope="module")
def eager(tiny_packs):
    return Eager(tiny_packs, "tiny-base")


@pytest.fixture(scope="module")
def scorer(tiny_packs):
    return make(tiny_packs)


def make(tiny_packs, **more):
    base, packs = load_shipped(tiny_packs["tiny-base"]), {name: load_shipped(tiny_packs[name]) for name in PACKS}
    longest = WINDOW.trained_tokens
    token_bytes = TextTokenizer.load(TOKENIZER).token_bytes
    return Scorer(base, packs, ENCODER.encode, longest=longest, token_bytes=token_bytes, **more)


def wanted(logits, record):
    """Nats and tokens by the definition, from logits [T, V] of the record's ids."""
    ids, learn = (part[: WINDOW.trained_tokens] for part in ENCODER.encode(record))
    likely = torch.log_softmax(torch.from_numpy(logits), -1)
    each = [-float(likely[i - 1, ids[i]]) for i in range(1, len(ids)) if learn[i]]
    return sum(each), len(each)


def test_what_a_pack_adds_to_the_head_counts_by_its_share(tiny_packs, tmp_path):
    speaks = replace(PACK, head_rank=8, vocabulary_size=BASE.vocabulary_size)
    there = {**tiny_packs, "speaks": write_pack(tmp_path / "speaks", manifest("speaks", "domain", speaks), 9)}
    packs = {name: load_shipped(there[name]) for name in ("general_chat", "speaks")}
    scorer = Scorer(load_shipped(there["tiny-base"]), packs, ENCODER.encode, longest=WINDOW.trained_tokens)
    blends = [{"speaks": 1.0}, {"general_chat": 0.6, "speaks": 0.4}]
    for blend, row in zip(blends, scorer.score(RECORDS[:3], blends), strict=True):
        for record, got in zip(RECORDS, row, strict=False):
            ids = ENCODER.encode(record)[0]
            logits = Eager(there, "tiny-base").blended(ids, blend, lambda w, outputs: w.expand(outputs.shape[:2]))
            assert got.nats == pytest.approx(wanted(logits, record)[0], rel=1e-4)


def test_likelihoods_are_those_of_the_whole_networks(scorer, eager):
    scored = scorer.score(RECORDS, [{pack: 1.0} for pack in PACKS])
    for pack, row in zip(PACKS, scored, strict=True):
        for record, got in zip(RECORDS[:4], row, strict=False):
            ids = ENCODER.encode(record)[0][: WINDOW.trained_tokens]
            nats, tokens = wanted(eager.logits(ids, pack), record)
            assert got.tokens == tokens
            assert got.nats == pytest.approx(nats, rel=1e-4)
        assert row[4] == Likelihood()
    assert scored[0] != scored[1]


def test_bytes_are_those_of_the_text_that_counts(scorer):
    (row,) = scorer.score(RECORDS[:3], [{"general_chat": 1.0}])
    texts = [RECORDS[0].text, *(record.messages[1]["content"] for record in RECORDS[1:3])]
    assert [one.bytes for one in row] == [len(text.encode()) for text in texts]
    assert row[0].bits_per_byte == pytest.approx(row[0].nats / math.log(2) / row[0].bytes)


def test_what_shares_a_batch_and_how_rows_are_cut_changes_nothing(scorer, monkeypatch):
    (together,) = scorer.score(RECORDS, [{"general_chat": 1.0}])
    monkeypatch.setattr(scoring, "HEAD_ROWS", 3)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    told = []
    (alone,) = scorer.score(RECORDS, [{"general_chat": 1.0}], told.append)
    assert sum(told) == len(RECORDS)
    for one, other in zip(alone, together, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-5)
        assert one.tokens == other.tokens


@pytest.mark.parametrize("fusion", BUILTIN, ids=lambda one: one.name)
@pytest.mark.parametrize("limit", [-1.0, 0.3])
def test_several_packs_are_blended_as_a_turn_blends_them(tiny_packs, eager, fusion, limit):
    shares, blend = Shares(fusion, limit), {"python_code": 0.7, "general_chat": 0.3}
    (row,) = make(tiny_packs, shares=shares).score(RECORDS[:3], [blend])

    def of_torch(weights, outputs):
        gram = (torch.einsum("tpe,tqe->tpq", outputs, outputs) / outputs.shape[-1]).numpy()
        return torch.from_numpy(shares(weights.numpy().astype(np.float32), gram, len(gram)))

    for record, got in zip(RECORDS[:3], row, strict=True):
        nats, _ = wanted(eager.blended(ENCODER.encode(record)[0], blend, of_torch), record)
        assert got.nats == pytest.approx(nats, rel=1e-4)


def test_without_a_fusion_weights_are_shares(tiny_packs, eager):
    blend = {"python_code": 0.6, "general_chat": 0.4}
    (row,) = make(tiny_packs).score(RECORDS[:1], [blend])
    logits = eager.blended(
        ENCODER.encode(RECORDS[0])[0], blend, lambda weights, outputs: weights.expand(len(outputs), -1)
    )
    assert row[0].nats == pytest.approx(wanted(logits, RECORDS[0])[0], rel=1e-4)


def test_perplexity_is_over_all_tokens_of_all_records(tiny_packs, scorer):
    base, pack = (load_shipped(tiny_packs[name]) for name in ("tiny-base", "general_chat"))
    (row,) = scorer.score(RECORDS, [{"general_chat": 1.0}])
    total = sum(row, Likelihood())
    assert total.tokens == sum(one.tokens for one in row)
    assert perplexity(base, pack, RECORDS, LIBRARY) == pytest.approx(math.exp(total.nats / total.tokens), rel=1e-5)


def test_nothing_that_counts_is_an_error_and_what_no_float_holds_is_infinite():
    with pytest.raises(DataError, match="no token's likelihood counts"):
        _ = Likelihood().perplexity
    assert Likelihood().bits_per_byte is None
    assert Likelihood(1e6, 1, 1).perplexity == math.inf
