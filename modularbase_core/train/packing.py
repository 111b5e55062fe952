"""Turn records into one long row of token ids with a loss mask, and cut windows from it.

Every document begins with <|begin|>, so document borders are in the ids themselves; `document_mask` reads
them back. What text goes in, and how much of each, is the recipe's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from modularbase_core.errors import DataError
from modularbase_core.text.template import BEGIN, END, ROLES
from modularbase_core.train.corpus import Record, read_records


@dataclass(frozen=True, slots=True)
class Tokens:
    """ids: [n] uint16 token ids; learn: [n] bool, true where the loss counts."""

    ids: NDArray[np.uint16]
    learn: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A share of a mix: `files` (relative to the data folder) and how many tokens of them to take.

    languages: keep only records that say so. Where messages are labelled (a router's mix, a pack's examples and
    others), `domains` keeps only messages that say so, `domain` is theirs in place of what they say, `tokens` counts
    messages, and `share` is what part of a router's batches they make up, 0 for as many as they are.
    """

    files: tuple[str, ...]
    tokens: int
    languages: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    domain: str = ""
    share: float = 0.0


class Encoder:
    """Encodes records by the chat template; `response_only` limits the loss to what the assistant says."""

    def __init__(self, tokenizer: Tokenizer, *, response_only: bool) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # a control token in the text stays text
        self._begin, self._end = control_id(tokenizer, BEGIN), control_id(tokenizer, END)
        self._roles = {role: control_id(tokenizer, token) for role, token in ROLES.items()}
        self._response_only = response_only

    def encode(self, record: Record) -> tuple[list[int], list[bool]]:
        """Return the ids of a record and where the loss counts."""
        if record.text is not None:
            body: list[int] = self._tokenizer.encode(record.text).ids
            return [self._begin, *body, self._end], [True] * (len(body) + 2)
        ids, learn = [self._begin], [not self._response_only]
        for message in record.messages:
            said = message["role"] == "assistant" or not self._response_only
            body = self._tokenizer.encode(message["content"]).ids
            ids += [self._roles[message["role"]], *body, self._end]
            learn += [not self._response_only, *[said] * (len(body) + 1)]
        return ids, learn


def control_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a control token; raises DataError when the tokenizer lacks it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"the tokenizer lacks the control token {token}; train it with `modularbase train`")
    return number


def pack_sources(
    sources: Sequence[Source], data: Path, tokenizer: Tokenizer, *, response_only: bool, longest: int, seed: int
) -> Tokens:
    """Encode the sources' records in random order, whole documents up to `longest` tokens a piece."""
    encoder = Encoder(tokenizer, response_only=response_only)
    documents: list[tuple[list[int], list[bool]]] = []
    for source in sources:
        records = [record for name in source.files for record in read_records(data / name)]
        if source.languages:
            records = [record for record in records if record.language in source.languages]
        if not records:
            raise DataError(f"no record in {', '.join(source.files)} matches the recipe")
        random.Random(seed).shuffle(records)
        documents.extend(_take(records, source.tokens, encoder, longest))
    random.Random(seed).shuffle(documents)
    return join(documents)


def join(documents: Iterable[tuple[list[int], list[bool]]]) -> Tokens:
    """Lay documents end to end."""
    ids: list[int] = []
    learn: list[bool] = []
    for more_ids, more_learn in documents:
        ids.extend(more_ids)
        learn.extend(more_learn)
    return Tokens(np.array(ids, np.uint16), np.array(learn, np.bool_))


def windows(tokens: Tokens, length: int, count: int, *, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (ids [count, length+1] int64, learn [count, length+1] bool) for ever, from batch `start`.

    Each pass over the data cuts it at another offset and shuffles the windows; a batch depends on the seed
    and its number alone, so a run resumes exactly.
    """
    per_pass = (len(tokens) - length - 1) // length // count
    if per_pass < 1:
        raise DataError(f"{len(tokens)} tokens are too few for a batch of {count} windows of {length}")
    batch = start
    while True:
        lap, first = divmod(batch, per_pass)
        order = np.random.default_rng([seed, lap]).permutation((len(tokens) - length - 1) // length)
        offset = int(np.random.default_rng([seed, lap, 1]).integers(0, length))
        for group in range(first, per_pass):
            starts = order[group * count : (group + 1) * count] * length + offset
            starts = np.minimum(starts, len(tokens) - length - 1)
            index = starts[:, None] + np.arange(length + 1)[None, :]
            yield torch.from_numpy(tokens.ids[index].astype(np.int64)), torch.from_numpy(tokens.learn[index])
            batch += 1


def document_mask(ids: Tensor, begin: int) -> Tensor:
    """Return [W, 1, N, N] bool: causal and within one document, for `ids` [W, N]."""
    document = (ids == begin).cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    return (same & causal)[:, None]


def _take(
    records: Sequence[Record], wanted: int, encoder: Encoder, longest: int
) -> Iterator[tuple[list[int], list[bool]]]:
    taken = 0
    while taken < wanted:  # a small source is repeated until its share is full
        for record in records:
            if taken >= wanted:
                return
            ids, learn = encoder.encode(record)
            for first in range(0, len(ids), longest):
                yield ids[first : first + longest], learn[first : first + longest]
            taken += len(ids)
