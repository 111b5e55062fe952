"""How likely texts and responses are under a base and packs, in torch, with the weights as shipped.

What is read, and which packs answer with which weights, is the caller's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from modularbase_core.errors import DataError
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.train.corpus import Record
from modularbase_core.train.encoding import Encoder

BATCH_TOKENS = 8192
HEAD_ROWS = 1024
"""Rows of logits [rows, V] that exist at once."""

Blend = Mapping[str, float]
"""Packs by id with their weights, the heaviest first."""
Shares = Callable[[NDArray[np.float32], NDArray[np.float32], int], NDArray[np.float32]]
"""From weights [N], packs' inner products [T, N, N] divided by their width, and T to shares [T, N]."""
Encode = Callable[[Record], tuple[Sequence[int], Sequence[bool]]]
"""From a record to its token ids and where its likelihood counts."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What predicting some tokens cost. nats: the sum of their negative log-likelihoods; bytes: of their text."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def perplexity(self) -> float:
        """exp(mean negative log-likelihood per token), infinite where no float holds it; raises DataError for none."""
        if not self.tokens:
            raise DataError("no token's likelihood counts; give texts, or messages with an answer")
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that a byte of the text costs, which other tokenizers' can be compared with; None of no bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None


class Scorer:
    """A base and packs as one language model, to be asked how likely records are.

    encode: as the base reads them. longest: tokens of a record that are read, at most the trained window. shares: how
    several packs are blended; by their weights alone when None. token_bytes: what a token stands for, to count bytes.
    """

    def __init__(
        self,
        base: Base,
        packs: Mapping[str, Pack],
        encode: Encode,
        *,
        longest: int,
        shares: Shares | None = None,
        token_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        self._base, self._packs, self._encode = base, packs, encode
        self._longest, self._shares, self._token_bytes = longest, shares, token_bytes

    def score(
        self, records: Sequence[Record], blends: Sequence[Blend], done: Callable[[int], None] | None = None
    ) -> list[list[Likelihood]]:
        """Return each blend's likelihoods, in the records' order; a record in which nothing counts has 0 tokens.

        done: called with how many records were scored now. Records are computed together, the base once for all blends.
        """
        out = [[Likelihood() for _ in records] for _ in blends]
        encoded = [(number, *self._cut(record)) for number, record in enumerate(records)]
        waiting = sorted((one for one in encoded if any(one[2][1:])), key=lambda one: len(one[1]))
        if done is not None and len(waiting) < len(records):
            done(len(records) - len(waiting))
        first = 0
        while first < len(waiting):
            batch = waiting[first : first + max(1, BATCH_TOKENS // len(waiting[first][1]))]
            while len(batch) > 1 and len(batch) * len(batch[-1][1]) > 2 * BATCH_TOKENS:
                batch = batch[: len(batch) // 2]
            first += len(batch)
            for scored, row in zip(out, self._batch([one[1:] for one in batch], blends), strict=True):
                for (number, *_), likelihood in zip(batch, row, strict=True):
                    scored[number] = likelihood
            if done is not None:
                done(len(batch))
        return out

    def _cut(self, record: Record) -> tuple[Sequence[int], Sequence[bool]]:
        ids, learn = self._encode(record)
        return ids[: self._longest], learn[: self._longest]

    @torch.no_grad()
    def _batch(
        self, batch: Sequence[tuple[Sequence[int], Sequence[bool]]], blends: Sequence[Blend]
    ) -> list[list[Likelihood]]:
        longest = max(len(ids) for ids, _ in batch)
        # padding comes last and attention is causal, so what it holds changes nothing
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in batch])
        learn = torch.tensor([[*learn, *[False] * (longest - len(learn))] for _, learn in batch])
        rows = torch.nonzero(learn[:, 1:].flatten()).flatten()
        rows = rows + rows // (longest - 1)  # a window has `longest` rows, the last of which predicts nothing
        targets = ids.flatten()[rows + 1]
        hidden = self._base.understand(ids.flatten(), Windows(len(batch)))
        outputs: dict[str, Tensor] = {}
        sizes = [self._bytes_of(one, told) for one, told in batch]
        counts = learn[:, 1:].sum(1).tolist()
        out = []
        for blend in blends:
            for pack in blend:
                if pack not in outputs:
                    outputs[pack] = self._packs[pack](hidden, Windows(len(batch)))
            mixed, shares = self._mixed([outputs[pack] for pack in blend], list(blend.values()))
            features = self._base.features(mixed, Windows(len(batch)), rows)
            losses = self._losses(*self._widened(features, blend, outputs, shares, rows), targets)
            nats = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, rows // longest, losses.double())
            out.append([Likelihood(*one) for one in zip(nats.tolist(), counts, sizes, strict=True)])
        return out

    def _mixed(self, outputs: list[Tensor], weights: list[float]) -> tuple[Tensor, Tensor]:
        """Blend packs' outputs [T, E] as a turn does, with shares [T, N]; a single one passes untouched."""
        if len(outputs) == 1:
            return outputs[0], torch.ones(len(outputs[0]), 1)
        both = torch.stack(outputs, 1)
        shares = torch.tensor(weights, dtype=both.dtype).expand(len(both), -1)
        if self._shares is not None:
            gram = (torch.einsum("tpe,tqe->tpq", both, both) / both.shape[-1]).numpy()
            shares = torch.from_numpy(self._shares(np.array(weights, np.float32), gram, len(gram)))
        return torch.einsum("tp,tpe->te", shares, both), shares

    def _widened(
        self, features: Tensor, blend: Blend, outputs: Mapping[str, Tensor], shares: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put beside features and head what packs add to the logits, each by its share: [R, E+r], [V, E+r]."""
        wide, weights = [features], [self._base.head_weight()]
        for number, pack in enumerate(blend):
            head = self._packs[pack].head
            if head is not None:
                wide.append(head.features(outputs[pack], rows) * shares[rows, number, None])
                weights.append(head.up.weight)
        return torch.cat(wide, 1), torch.cat(weights, 1)

    def _losses(self, features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        parts = zip(torch.split(features, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
        return torch.cat(
            [functional.cross_entropy(functional.linear(x, weight), wanted, reduction="none") for x, wanted in parts]
        )

    def _bytes_of(self, ids: Sequence[int], learn: Sequence[bool]) -> int:
        if self._token_bytes is None:
            return 0
        return sum(len(self._token_bytes(one)) for one, counts in zip(ids[1:], learn[1:], strict=True) if counts)


def perplexity(base: Base, pack: Pack, records: Sequence[Record], tokenizer: Tokenizer) -> float:
    """Return exp(mean negative log-likelihood per token) of the records.

    Of messages only what the assistant says counts, of texts everything; each record is cut at the trained window.
    """
    longest = 16 * base.understanding.rotary.shape[0]
    scorer = Scorer(base, {"": pack}, Encoder(tokenizer, response_only=True).encode, longest=longest)
    (scored,) = scorer.score(records, [{"": 1.0}])
    return sum(scored, Likelihood()).perplexity


def shuffled_prompts(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Give each prompt/response record the prompt of another one; none keeps its own."""
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    other = {order[i]: order[i - 1] for i in range(len(order))}  # a single cycle has no fixed point
    return [
        replace(record, messages=(*records[other[i]].messages[:1], *record.messages[1:]))
        for i, record in enumerate(records)
    ]
