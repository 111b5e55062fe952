"""Perplexity of texts and responses under a base and a pack, in torch, with the weights as shipped."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.train.corpus import Record
from modularbase_core.train.packing import Encoder

BATCH_TOKENS = 8192


@torch.no_grad()
def perplexity(base: Base, pack: Pack, records: Sequence[Record], tokenizer: Tokenizer) -> float:
    """Return exp(mean negative log-likelihood per token) of the records.

    Of messages only what the assistant says counts, of texts everything; each record is cut at the trained window.
    """
    encoder = Encoder(tokenizer, response_only=True)
    window = 16 * base.understanding.rotary.shape[0]
    cut = [(ids[:window], learn[:window]) for ids, learn in map(encoder.encode, records)]
    cut = sorted((pair for pair in cut if any(pair[1][1:])), key=lambda pair: len(pair[0]))
    total, count, first = 0.0, 0, 0
    while first < len(cut):
        size = max(1, BATCH_TOKENS // len(cut[first][0]))
        batch = cut[first : first + size]
        while len(batch) > 1 and len(batch) * len(batch[-1][0]) > 2 * BATCH_TOKENS:
            batch = batch[: len(batch) // 2]
        first += len(batch)
        loss, tokens = _batch_loss(base, pack, batch)
        total += loss
        count += tokens
    return math.exp(total / count)


def shuffled_prompts(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Give each prompt/response record the prompt of another one; none keeps its own."""
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    other = {order[i]: order[i - 1] for i in range(len(order))}  # a single cycle has no fixed point
    return [
        replace(record, messages=(*records[other[i]].messages[:1], *record.messages[1:]))
        for i, record in enumerate(records)
    ]


def _batch_loss(base: Base, pack: Pack, batch: Sequence[tuple[list[int], list[bool]]]) -> tuple[float, int]:
    longest = max(len(ids) for ids, _ in batch)
    # padding comes last and attention is causal, so what it holds changes nothing
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
    learn = torch.tensor([learn + [False] * (longest - len(learn)) for _, learn in batch])
    place = Windows(len(batch))
    rows = torch.nonzero(learn[:, 1:].flatten()).flatten()
    rows = rows + rows // (longest - 1)  # a window has `longest` rows, the last of which predicts nothing
    hidden = base.understand(ids.flatten(), place)
    logits = base.fuse(pack(hidden, place), place, rows)
    targets = ids[:, 1:][learn[:, 1:]]
    return float(functional.cross_entropy(logits, targets, reduction="sum")), len(targets)
