"""What a pack that arrives takes from those already there: their own examples, routed without it and with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modularbase_core.config import EngineConfig
from modularbase_core.device.artefact import Progress
from modularbase_core.errors import ModularBaseError
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import Catalog
from modularbase_core.packs.resolve import Lineup
from modularbase_core.sdk.examples import read_examples
from modularbase_core.turn.route import choose


@dataclass(frozen=True, slots=True)
class Taken:
    """One pack: how many of its examples it answers before and after, and how many of them newcomers answer."""

    pack_id: str
    examples: int
    before: int
    after: int
    to_newcomers: int


@dataclass(frozen=True, slots=True)
class Takeover:
    """What changes. newcomers: ids of the packs that arrived; their own rows have nothing before."""

    newcomers: tuple[str, ...]
    rows: tuple[Taken, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"newcomers": list(self.newcomers), "packs": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        """Lay the rows out as a table."""
        names = ", ".join(self.newcomers)
        head = ("pack", "examples", "answered before", "after", f"now by {names}")
        lines = [
            (row.pack_id, str(row.examples), str(row.before), str(row.after), str(row.to_newcomers))
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) if not at else text.rjust(width) for at, (text, width) in enumerate(pairs))
            for pairs in (list(zip(line, widths, strict=True)) for line in (head, *lines))
        )


def takeover(before: Catalog, after: Catalog, config: EngineConfig, progress: Progress | None = None) -> Takeover:
    """Route the examples of every pack without and with the packs that `after` has beyond `before`.

    Nothing is trained: only base and router run. Raises what `Messages.open` raises.
    """
    known = {one.id for one in before.packs}
    messages = Messages.open(config, after, progress)
    newcomers = tuple(one.id for one in messages.lineup.routable if one.id not in known)
    prompts = _prompts(messages.lineup)
    rows = []
    for pack_id, texts in prompts.items():
        scored = messages.scores(texts)
        old = [_chosen(scores, messages.lineup, config, without=newcomers) for scores in scored]
        new = [_chosen(scores, messages.lineup, config) for scores in scored]
        rows.append(
            Taken(
                pack_id,
                len(texts),
                sum(pack_id in ids for ids in old),
                sum(pack_id in ids for ids in new),
                sum(pack_id not in newcomers and any(one in newcomers for one in ids) for ids in new),
            )
        )
    return Takeover(newcomers, tuple(rows))


def _prompts(lineup: Lineup) -> dict[str, list[str]]:
    """Return the examples of the packs that bring any, by id."""
    out = {}
    for one in lineup.routable:
        if one.pack.examples.exists():
            try:
                out[one.id] = [example.prompt for example in read_examples(one.pack.examples)]
            except ModularBaseError:
                continue  # `pack verify` tells of it
    return {pack_id: texts for pack_id, texts in out.items() if texts}


def _chosen(
    scores: dict[str, float], lineup: Lineup, config: EngineConfig, without: Sequence[str] = ()
) -> tuple[str, ...]:
    left = {pack_id: score for pack_id, score in scores.items() if pack_id not in without}
    return choose(left, lineup.general_chat.id, threshold=config.threshold, packs_per_turn=config.packs_per_turn).ids
