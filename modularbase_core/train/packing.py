"""Pack whole documents into windows, pass by pass.

Documents begin with the template's border token, so their borders are in the ids; `document_mask` reads them back.
What the documents are is `encoding`'s.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modularbase_core.errors import DataError
from modularbase_core.train.encoding import Documents, Material


def windows(
    material: Material, length: int, count: int, *, begin: int, seed: int, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (ids [count, length+1] int64, learn [count, length+1] bool) for ever, from batch `start`.

    Each pass over the data cuts long documents at other places and packs the pieces anew; a batch depends on the
    seed and its number alone, so a run resumes exactly. What is left of a window is filled with `begin`.
    """
    first = start
    for lap in itertools.count():
        for number, documents in enumerate(material.parts(lap)):
            random_ = np.random.default_rng([seed, lap, number] if number else [seed, lap])
            pieces = _pieces(documents, length + 1, random_)
            packed = best_fit(pieces[:, 1] - pieces[:, 0] + pieces[:, 2], length + 1)
            order = random_.permutation(len(packed))
            if len(packed) < count:
                raise DataError(
                    f"{len(documents.ids)} tokens fill {len(packed)} windows of {length}, too few for a batch of "
                    f"{count}; give more text, or lower batch_tokens"
                )
            for group in range(first, len(packed) // count):
                chosen = [packed[one] for one in order[group * count : (group + 1) * count]]
                yield _laid_out(documents, pieces, chosen, length + 1, begin)
            first = max(0, first - len(packed) // count)


def best_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Put things of `lengths` <= capacity into as few bins as best-fit-decreasing needs; return each bin's indices.

    Whole documents cost next to no padding so (Ding et al., 2024, "Fewer Truncations Improve Language Modeling").
    """
    bins: list[list[int]] = []
    with_space: dict[int, list[int]] = defaultdict(list)  # bins by the space that they have left
    spaces: list[int] = []  # the keys of `with_space`, sorted
    for number in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[number])
        found = bisect_left(spaces, size)
        if found == len(spaces):
            bins.append([])
            chosen, space = len(bins) - 1, capacity
        else:
            space = spaces[found]
            chosen = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[found]
        bins[chosen].append(number)
        left = space - size
        if left > 0:
            if left not in with_space:
                insort(spaces, left)
            with_space[left].append(chosen)
    return bins


def document_mask(ids: Tensor, begin: int) -> Tensor:
    """Return [W, 1, N, N] bool: causal and within one document, for `ids` [W, N]."""
    document = (ids == begin).cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    return (same & causal)[:, None]


def _pieces(documents: Documents, longest: int, random_: np.random.Generator) -> NDArray[np.int64]:
    """Cut documents into pieces [n, 3] of at most `longest` tokens: first token, end, 1 for a <|begin|> before it."""
    out: list[tuple[int, int, int]] = []
    for number, (first, end) in enumerate(itertools.pairwise(documents.starts.tolist())):
        if end - first <= longest:
            out.append((first, end, 0))
        elif not documents.whole[number]:
            cut = first + int(random_.integers(longest // 2, longest + 1))  # each pass cuts elsewhere
            out.append((first, cut, 0))
            out.extend((at, min(end, at + longest - 1), 1) for at in range(cut, end, longest - 1))
    pieces = np.array(out, np.int64).reshape(-1, 3)
    return pieces[random_.permutation(len(pieces))]  # those of one length meet others each time


def _laid_out(
    documents: Documents, pieces: NDArray[np.int64], chosen: Sequence[Sequence[int]], size: int, begin: int
) -> tuple[Tensor, Tensor]:
    ids, learn = np.full((len(chosen), size), begin, np.int64), np.zeros((len(chosen), size), np.bool_)
    for row, numbers in enumerate(chosen):
        at = 0
        for first, end, continues in pieces[list(numbers)].tolist():
            at += continues
            ids[row, at : at + end - first] = documents.ids[first:end]
            learn[row, at : at + end - first] = documents.learn[first:end]
            at += end - first
    return torch.from_numpy(ids), torch.from_numpy(learn)
