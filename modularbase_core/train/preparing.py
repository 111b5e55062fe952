"""Make shards of any amount of text: read as a stream, each record once, tokenised on all cores.

Decides which records are left out, which are held back for validation, and how an interrupted run goes on. How
files are read is left to `readers`, how shards lie on the disk to `shards`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from modularbase_core.errors import DataError
from modularbase_core.sdk.files import write_atomically
from modularbase_core.sdk.jsonfile import parse_json
from modularbase_core.train.corpus import Record, Tell, read_found
from modularbase_core.train.encoding import Encoder, Joining
from modularbase_core.train.readers.files import find_files
from modularbase_core.train.seen import Seen
from modularbase_core.train.shards import (
    INDEX_FILE,
    SPLITS,
    UNFINISHED_FILE,
    Index,
    Shard,
    read_index,
    write_index,
    write_shard,
)

Progress = Callable[[str, int, int], None]
"""Called with what is done, bytes done and bytes in all."""

BATCH_RECORDS: Final = 256
BATCH_CHARACTERS: Final = 1_000_000
"""What is tokenised at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to make shards of, and how.

    inputs: files, folders and globs. tokenizer: what people call it; fingerprint: of it and its template.
    shard_tokens: a shard is written when it has so many. response_only: the loss counts on what the assistant says
    alone. validation: share of the records that go to the split `valid`. languages: keep only records that say so.
    """

    inputs: tuple[Path, ...]
    tokenizer: str
    fingerprint: str
    vocabulary_size: int
    shard_tokens: int = 20_000_000
    response_only: bool = False
    validation: float = 0.0
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise DataError(f"the share held back for validation is {self.validation:g}; give 0 or more, less than 1")
        if self.shard_tokens < 1:
            raise DataError(f"a shard of {self.shard_tokens} tokens holds nothing; give at least 1")


def prepare(
    plan: Plan, folder: Path, encoder: Encoder, progress: Progress | None = None, tell: Tell | None = None
) -> Index:
    """Write shards of the plan's inputs into `folder` and return their index.

    An interrupted run of the same plan goes on after its last whole shard; a finished one is returned as it is. tell:
    takes sentences on what is not obvious. Raises DataError on bad data, where the folder holds something else, and
    when it cannot be written.
    """
    run = _Run(plan, folder, encoder, progress, tell or (lambda sentence: None))
    try:
        return run.finished() if (folder / INDEX_FILE).exists() else run.go()
    except OSError as error:
        raise DataError(
            f"shards cannot be written to {folder} ({error.strerror or error}); "
            "see to that, and the same command goes on where it ended"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """How far the reading came: all before `record` of `file`; counts: records taken of each file."""

    file: int = 0
    record: int = 0
    messages: int = 0
    duplicates: int = 0
    counts: tuple[int, ...]


class _Run:
    """One run over all files, or what is left of it."""

    def __init__(self, plan: Plan, folder: Path, encoder: Encoder, progress: Progress | None, tell: Tell) -> None:
        self._plan, self._folder, self._encoder, self._tell = plan, folder, encoder, tell
        self._files = list(dict.fromkeys(one for entry in plan.inputs for one in find_files(entry)))
        stats = [one.path.stat() for one in self._files]
        self._sizes = [stat.st_size for stat in stats]
        places = [[str(one.path), stat.st_size, stat.st_mtime_ns] for one, stat in zip(self._files, stats, strict=True)]
        asked = json.dumps({**asdict(replace(plan, inputs=())), "inputs": places})
        self._asked = hashlib.sha256(asked.encode()).hexdigest()
        self._meter = _Meter(progress, sum(self._sizes))
        self._seen = Seen()
        self._shards: list[Shard] = []
        self._steps = 0

    def finished(self) -> Index:
        """Return the index that is there; raises DataError when it is of something else."""
        index = read_index(self._folder)
        if index.asked != self._asked:
            raise DataError(
                f"{self._folder} holds shards of other inputs or settings, or of inputs that have changed; "
                "name another --out, or remove it"
            )
        self._tell(f"{self._folder} is complete; nothing is left to do")
        return index

    def go(self) -> Index:
        """Read, tokenise and write until all is done."""
        place = self._begin()
        held = {split: Joining() for split in SPLITS}
        for batch, now in self._batches(place):
            documents = self._encoder.encode_all([record for _, record in batch])
            for (split, _), document in zip(batch, documents, strict=True):
                held[split].add(document)
            place = now
            if len(held["train"]) >= self._plan.shard_tokens:
                self._keep(place, held)
                held = {split: Joining() for split in SPLITS}
        if any(map(len, held.values())):
            self._keep(place, held)
        return self._finish(place)

    def _begin(self) -> _Place:
        """Return where reading begins; take in what an interrupted run had seen and written."""
        path = self._folder / UNFINISHED_FILE
        if not path.exists():
            if self._folder.exists() and any(self._folder.iterdir()):
                raise DataError(f"{self._folder} holds other files; name a new folder as --out")
            return _Place(counts=(0,) * len(self._files))
        try:
            value = parse_json(path.read_bytes())
            if value["asked"] != self._asked:
                raise DataError(
                    f"{self._folder} holds an unfinished run of other inputs or settings, or of inputs that have "
                    "changed; name another --out, or remove it and begin anew"
                )
            self._shards = [Shard(**shard) for shard in value["shards"]]
            self._steps = value["steps"]
            for step in range(self._steps):
                self._seen.extend(np.load(self._folder / _seen_file(step), allow_pickle=False))
            place = _Place(**{**value["place"], "counts": tuple(value["place"]["counts"])})
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"{path} cannot be read ({error}); remove {self._folder} and begin anew") from error
        self._tell(f"going on after {sum(shard.tokens for shard in self._shards):,} tokens, which are in whole shards")
        return place

    def _batches(self, begin: _Place) -> Iterator[tuple[list[tuple[str, Record]], _Place]]:
        """Yield records with their splits, each record once, and the place behind them."""
        batch: list[tuple[str, Record]] = []
        characters, counts, messages, duplicates = 0, list(begin.counts), begin.messages, begin.duplicates
        for number, position, record in self._records(begin):
            key, split = self._sort(record)
            if not self._seen.add(key):
                duplicates += 1
                continue
            batch.append((split, record))
            counts[number] += 1
            messages += record.text is None
            characters += len(record.whole)
            if len(batch) >= BATCH_RECORDS or characters >= BATCH_CHARACTERS:
                yield (
                    batch,
                    _Place(
                        file=number,
                        record=position + 1,
                        messages=messages,
                        duplicates=duplicates,
                        counts=tuple(counts),
                    ),
                )
                batch, characters = [], 0
        yield batch, _Place(file=len(self._files), messages=messages, duplicates=duplicates, counts=tuple(counts))

    def _records(self, begin: _Place) -> Iterator[tuple[int, int, Record]]:
        """Yield (file, position in it, record) from `begin` on, of the languages asked for."""
        languages = self._plan.languages
        self._meter(sum(self._sizes[: begin.file]))
        for number in range(begin.file, len(self._files)):
            done = begin.record if number == begin.file else 0
            for position, record in enumerate(read_found(self._files[number], self._tell, self._meter)):
                if position >= done and (not languages or record.language in languages):
                    yield number, position, record

    def _sort(self, record: Record) -> tuple[int, str]:
        """Return the hash that tells a record from others, and its split, which depends on what it says alone."""
        said = record.text if record.text is not None else json.dumps(record.messages, sort_keys=True)
        digest = hashlib.blake2b(said.encode("utf-8"), digest_size=16).digest()
        chance = int.from_bytes(digest[8:], "little") / 2**64
        return int.from_bytes(digest[:8], "little"), SPLITS[chance < self._plan.validation]

    def _keep(self, place: _Place, held: dict[str, Joining]) -> None:
        """Write what is held as a shard of each split; from then on an interrupted run goes on behind it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for split, joining in held.items():
            if len(joining):
                name = f"{split}-{self._steps:05}"
                documents = joining.documents()
                self._shards.append(write_shard(self._folder, name, split, documents, self._plan.vocabulary_size))
        seen = io.BytesIO()
        np.save(seen, self._seen.settle())
        write_atomically(self._folder / _seen_file(self._steps), [seen.getvalue()])
        self._steps += 1
        state = {
            "asked": self._asked,
            "steps": self._steps,
            "place": asdict(place),
            "shards": [asdict(shard) for shard in self._shards],
        }
        write_atomically(self._folder / UNFINISHED_FILE, [json.dumps(state).encode()])

    def _finish(self, place: _Place) -> Index:
        if not any(shard.split == "train" for shard in self._shards):
            chosen = f" in {', '.join(self._plan.languages)}" if self._plan.languages else ""
            held = " beside what is held back for validation" if self._shards else ""
            raise DataError(f"there is no record{chosen}{held} to make shards of; check the inputs")
        index = Index(
            tokenizer=self._plan.tokenizer,
            fingerprint=self._plan.fingerprint,
            vocabulary_size=self._plan.vocabulary_size,
            response_only=self._plan.response_only,
            messages=place.messages,
            duplicates=place.duplicates,
            asked=self._asked,
            sources=[
                {"name": str(one.path), "bytes": size, "records": count}
                for one, size, count in zip(self._files, self._sizes, place.counts, strict=True)
            ],
            shards=self._shards,
        )
        write_index(self._folder, index)
        for path in (self._folder / UNFINISHED_FILE, *map(self._folder.joinpath, map(_seen_file, range(self._steps)))):
            path.unlink(missing_ok=True)
        return index


class _Meter:
    """Adds up bytes that are read and tells of them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress("tokenising", min(self._done, self._total), self._total)


def _seen_file(step: int) -> str:
    return f"seen-{step:05}.npy"
