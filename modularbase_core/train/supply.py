"""Learn from more than memory holds: shards, read block by block in random order, beside documents in memory.

Decides what each pass takes of them and in what parts; how a part becomes windows is `packing.windows`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.train.encoding import Documents
from modularbase_core.train.recipe import Source
from modularbase_core.train.shards import Index, MappedShard, holds_shards, map_shards, read_index

BLOCK_TOKENS: Final = 1 << 17
"""What is read in one piece: neighbours stay together for this long."""
PART_TOKENS: Final = 1 << 24
"""What is packed together and lies in memory: 3 bytes a token, and 6 in a vocabulary of more than 65,536."""


class ShardSource:
    """The training split of a folder of shards; each pass takes `tokens` of it, the next pass the next ones."""

    def __init__(self, folder: Path, tokens: int, *, seed: int, block_tokens: int = BLOCK_TOKENS) -> None:
        index = read_index(folder)
        self._shards = list(map_shards(folder, index, "train"))
        self._block_tokens, self._seed = block_tokens, seed
        share = tokens / index.tokens("train")
        self._taken = max(1, round(share * len(self._blocks)))

    def blocks(self, lap: int) -> list[Block]:
        """Return the blocks of pass `lap`: those that follow the last pass's, in an order of their own each time round.

        A share larger than the shards takes some of them more than once a pass.
        """
        out, places = [], range(lap * self._taken, (lap + 1) * self._taken)
        for round_, group in itertools.groupby(places, key=lambda place: place // len(self._blocks)):
            order = np.random.default_rng([self._seed, round_]).permutation(len(self._blocks))
            out += [self._blocks[order[place % len(self._blocks)]] for place in group]
        return out

    @cached_property
    def _blocks(self) -> list[Block]:
        out = []
        for shard in self._shards:
            edges = np.arange(0, shard.shard.tokens, self._block_tokens)
            firsts = np.unique(np.searchsorted(shard.starts[:-1], edges))
            bounds = [*firsts[firsts < shard.shard.documents].tolist(), shard.shard.documents]
            out += [Block(shard, first, end) for first, end in itertools.pairwise(bounds)]
        return out


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring documents of a shard, [first, end)."""

    shard: MappedShard
    first: int
    end: int

    @property
    def tokens(self) -> int:
        """How many tokens they have."""
        return int(self.shard.starts[self.end] - self.shard.starts[self.first])

    def read(self) -> Documents:
        """Copy them into memory; raises DataError."""
        return self.shard.read(self.first, self.end)


@dataclass(frozen=True)
class Supply:
    """Documents in memory, each once a pass, and what the pass takes of shards. Memory holds one part at a time."""

    documents: Documents
    shards: Sequence[ShardSource]
    seed: int
    part_tokens: int = PART_TOKENS

    def parts(self, lap: int) -> Iterator[Documents]:
        """Yield the pass's documents in random parts of about `part_tokens`, of each source its share in each part."""
        random_ = np.random.default_rng([self.seed, lap, 2])
        blocks = [block for source in self.shards for block in source.blocks(lap)]
        total = len(self.documents.ids) + sum(block.tokens for block in blocks)
        count = max(1, round(total / self.part_tokens))
        own = np.array_split(random_.permutation(len(self.documents)), count)
        theirs = np.array_split(random_.permutation(len(blocks)), count)
        for number in range(count):
            picked = _picked(self.documents, own[number]) if count > 1 else self.documents
            yield together([picked, *(blocks[one].read() for one in theirs[number])])


def is_sharded(source: Source, data: Path) -> bool:
    """Tell whether a source names folders of shards; raises DataError when it names other files too."""
    found = [holds_shards(data / name) for name in source.files]
    if any(found) and not all(found):
        raise DataError(f"{', '.join(source.files)} are shards and other files; give each a [[mix]] of its own")
    return any(found)


def shard_sources(source: Source, data: Path, wanted: str, *, response_only: bool, seed: int) -> list[ShardSource]:
    """Open the folders of shards that a source names; of several each gives a share by its size.

    wanted: the fingerprint of the recipe's tokenizer and template. Raises DataError where a folder cannot be used.
    """
    folders = [data / name for name in source.files]
    indices = [read_index(folder) for folder in folders]
    for folder, index in zip(folders, indices, strict=True):
        _check(folder, index, source, wanted, response_only=response_only)
    sizes = [index.tokens("train") for index in indices]
    shares = [max(1, round(source.tokens * size / sum(sizes))) for size in sizes]
    return [ShardSource(folder, share, seed=seed) for folder, share in zip(folders, shares, strict=True)]


def shard_texts(folder: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the texts of the training split's documents, conversations without their roles."""
    for shard in map_shards(folder, read_index(folder), "train"):
        for number in range(shard.shard.documents):
            yield tokenizer.decode(shard.read(number, number + 1).ids.tolist(), skip_special_tokens=True)


def together(parts: Sequence[Documents]) -> Documents:
    """Lay documents of several parts end to end."""
    lengths = [0, *itertools.accumulate(len(part.ids) for part in parts)]
    starts = [part.starts[1:] + offset for part, offset in zip(parts, lengths, strict=False)]
    return Documents(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.learn for part in parts]),
        np.concatenate([np.zeros(1, np.int64), *starts]),
        np.concatenate([part.whole for part in parts]),
    )


def _picked(documents: Documents, numbers: NDArray[np.int64]) -> Documents:
    """Copy the documents of these numbers."""
    first, lengths = documents.starts[numbers], documents.starts[numbers + 1] - documents.starts[numbers]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    places = np.repeat(first - starts[:-1], lengths) + np.arange(starts[-1])
    return Documents(documents.ids[places], documents.learn[places], starts, documents.whole[numbers])


def _check(folder: Path, index: Index, source: Source, wanted: str, *, response_only: bool) -> None:
    if index.fingerprint != wanted:
        raise DataError(
            f"the shards in {folder} were made with another tokenizer or chat template ({index.tokenizer}) than the "
            "recipe's; prepare them again with its --tokenizer"
        )
    if index.messages and index.response_only != response_only:
        raise DataError(
            f"the shards in {folder} were made {'with' if index.response_only else 'without'} --response-only, but the "
            f"recipe says response_only = {str(response_only).lower()}; change one of the two"
        )
    if source.sections:
        raise DataError(f"the shards in {folder} know no headings; give the pages themselves where sections = true")
    if source.languages:
        raise DataError(
            f"the shards in {folder} do not tell languages apart; prepare them with "
            f"{' '.join(f'--language {one}' for one in source.languages)}, and leave `languages` out of the mix"
        )
