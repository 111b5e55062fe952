"""What a pack grows by and what it keeps: new records and replayed ones, a part of each left out to measure by.

Written once into RUNS/NAME/material, so that a run that resumes learns from the same.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ConfigError
from modularbase_core.sdk.files import write_atomically
from modularbase_core.train.corpus import read_records
from modularbase_core.train.encoding import records_of
from modularbase_core.train.parallel import first_process
from modularbase_core.train.readers.record import Record
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.shards import holds_shards

KEPT_SHARE: Final = 0.05
MOST_KEPT: Final = 200
"""Records of the new ones, and of the replayed ones, that are measured by."""
FEWEST: Final = 10
"""Of fewer records none is kept out."""


@dataclass(frozen=True, slots=True)
class Material:
    """The folder of what was divided; new, replay: how many records each holds, those kept out included."""

    folder: Path
    new: int
    replay: int

    def sources(self, recipe: Recipe) -> tuple[Source, ...]:
        """Return the mix to learn from: the new records, and of replayed ones the recipe's share of the tokens."""
        share = recipe.replay_share if self.replay else 0.0
        parts = [("new", recipe.mix, recipe.tokens * (1 - share))]
        if share:
            replayed = recipe.replay or (Source(files=("examples",), tokens=1),)
            parts.append(("replay", replayed, recipe.tokens * share))
        out = []
        for name, sources, tokens in parts:
            total = sum(source.tokens for source in sources)
            for number, source in enumerate(sources):
                file = str((self.folder / f"{name}-{number}.jsonl").resolve())
                out.append(Source(files=(file,), tokens=max(1, round(tokens * source.tokens / total))))
        return tuple(out)

    def kept_out(self, name: str) -> list[Record]:
        """Return the records of `name`, new or replay, that nothing is learnt from."""
        path = self.folder / f"{name}-kept.jsonl"
        return list(read_records(path)) if path.exists() and path.stat().st_size else []


def divide(recipe: Recipe, data: Path, folder: Path, examples: Callable[[], Sequence[Record]]) -> Material:
    """Divide the recipe's mix and what is replayed, once.

    examples: gives what is replayed where the recipe names nothing. Raises ConfigError and DataError.
    """
    marker, said = folder / "material.json", _said(recipe, data)
    while not (told := _divided(marker, said)) and not first_process():
        time.sleep(1.0)  # the first process divides
    if told:
        return told
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    new = [_distinct(source, data) for source in recipe.mix]
    if not new:
        raise ConfigError(f"recipe {recipe.name!r} has no [[mix]]; name there what the pack is to learn")
    replay = [_distinct(source, data) for source in recipe.replay]
    if not replay and recipe.replay_share and (own := list(examples())):
        replay = [own]
    counts = {}
    for name, groups in (("new", new), ("replay", replay)):
        counts[name] = sum(map(len, groups))
        kept = []
        for number, records in enumerate(groups):
            random.Random(recipe.seed).shuffle(records)
            count = _kept(len(records), counts[name])
            kept += records[:count]
            _write(folder / f"{name}-{number}.jsonl", records[count:])
        _write(folder / f"{name}-kept.jsonl", kept)
    write_atomically(marker, [json.dumps({"of": said, **counts}).encode()])
    return Material(folder, counts["new"], counts["replay"])


def _kept(records: int, of_all: int) -> int:
    if records < FEWEST:
        return 0
    return max(1, int(min(KEPT_SHARE, MOST_KEPT / of_all) * records))


def _divided(marker: Path, said: object) -> Material | None:
    """Return what is there, if it was made of what the recipe says now."""
    if not marker.exists():
        return None
    told = json.loads(marker.read_text(encoding="utf-8"))
    return Material(marker.parent, told["new"], told["replay"]) if told["of"] == said else None


def _distinct(source: Source, data: Path) -> list[Record]:
    """Read each record once: what is kept out is not to be learnt in another place."""
    for name in source.files:
        if holds_shards(data / name):
            raise ConfigError(
                f"{name} holds shards, but grow keeps records out to measure by; name what they are made of"
            )
    return list({(one.text, str(one.messages)): one for one in records_of(source, data)}.values())


def _write(path: Path, records: Sequence[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for one in records:
            said: dict[str, Any] = {"messages": one.messages} if one.text is None else {"text": one.text}
            told = {"lang": one.language, "source": one.source}
            file.write(json.dumps({**said, **told}, ensure_ascii=False) + "\n")


def _said(recipe: Recipe, data: Path) -> Any:  # Any: JSON
    sources = {"mix": recipe.mix, "replay": recipe.replay}
    plain = {key: [asdict(source) for source in value] for key, value in sources.items()}
    how = {"seed": recipe.seed, "data": str(data.resolve()), "start": recipe.start, "replays": recipe.replay_share > 0}
    return json.loads(json.dumps({**plain, **how}))  # as it is read again
