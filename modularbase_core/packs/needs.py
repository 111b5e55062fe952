"""Which packs have all that they need: what is missing, of another version, or needs itself, told down to its cause.

A pack that falls takes along those that need it. Which packs are there to begin with is decided in `resolve`.
Linear in packs and needs, and the same in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from packaging.specifiers import SpecifierSet

from modularbase_core.packs.cycles import cycles
from modularbase_core.packs.inventory import Inventory
from modularbase_core.packs.ranges import Range, range_of
from modularbase_core.sdk.manifest import Dependency, Manifest

LONGEST_CHAIN: Final = 6
"""Steps of a chain that are told one by one; of a longer one the first, the last, and how many lie between."""
MOST_FAULTS: Final = 3
"""Unmet needs of one pack that are told."""


@dataclass(frozen=True, slots=True)
class Settled:
    """refused: a sentence by id for each pack that falls. notes: one for each that stays but keeps another out."""

    refused: dict[str, str]
    notes: dict[str, str]


def settle(present: Mapping[str, Manifest], unfit: Mapping[str, str], inventory: Inventory) -> Settled:
    """Find the packs of `present` that fall.

    unfit: what is wrong with packs that are installed and not present, by id, to follow `pack 'x' `.
    """
    needs = {
        one: [need.id for need in present[one].dependencies if need.id in present and need.id not in unfit]
        for one in sorted(present)
        if one not in unfit
    }
    falls = {one: _Fall(says, one) for one, says in unfit.items()}
    for one, (cycle, at) in cycles(needs).items():
        circle = f"is in a circle: {_drawn(cycle, at)} depend on each other"
        falls[one] = _Fall(f"{circle}; install another version of one of them", one)
    unmet, rivals = _unmet(present, unfit, inventory)
    for one, says in unmet.items():
        falls.setdefault(one, _Fall(says, one))
    _spread(present, falls)
    return Settled(
        {one: falls[one].sentence(one) for one in sorted(falls)},
        {one: note for one, note in rivals.items() if one not in falls},
    )


@dataclass(frozen=True, slots=True)
class _Fall:
    """Why a pack falls: what is wrong with `root`, and the needs that lead there, the first few of `steps`."""

    says: str
    root: str
    chain: tuple[Dependency, ...] = ()
    steps: int = 0

    def taking(self, need: Dependency) -> _Fall:
        return _Fall(self.says, self.root, (need, *self.chain[: LONGEST_CHAIN - 1]), self.steps + 1)

    def sentence(self, pack_id: str) -> str:
        """Tell it of `pack_id`."""
        chain, more = self.chain, ""
        if self.steps > LONGEST_CHAIN:
            chain = chain[: LONGEST_CHAIN // 2]
            more = f"needs {self.root} through {self.steps - len(chain) - 1} more packs, which "
        links = "".join(f"needs {_shown(need)}, which " for need in chain)
        return f"pack {pack_id!r} {links}{more}{self.says}"


@dataclass(frozen=True, slots=True)
class _Demand:
    by: str
    need: Dependency
    range: Range


def _unmet(
    present: Mapping[str, Manifest], unfit: Mapping[str, str], inventory: Inventory
) -> tuple[dict[str, str], dict[str, str]]:
    """Say of each pack which of its own needs are not met, and of each rival what it keeps out."""
    demands: dict[str, list[tuple[str, Dependency]]] = {}
    failing: dict[str, list[Dependency]] = {}
    for one in sorted(present):
        for need in dict.fromkeys(present[one].dependencies if one not in unfit else ()):
            if need.id in unfit:
                continue
            demands.setdefault(need.id, []).append((one, need))
            if need.id not in present or not _admits(need, present[need.id].version):
                failing.setdefault(one, []).append(need)
    rivalries = _Rivalries(demands)
    told: dict[str, str] = {}
    notes: dict[str, str] = {}
    for one, needs in failing.items():
        facts, advice = [], []
        for need in needs:
            used = present.get(need.id)
            what, then = (
                inventory.missing(need.id, one) if used is None else inventory.unsuited(need, used.version, one)
            )
            if (rival := rivalries.of(one, need)) is not None:
                what, then = f"{what}, {_rivalry(one, need, rival)}", _way_out(one, need, rival)
                notes.setdefault(rival.by, _kept_out(one, need, rival))
            facts.append(f"needs {_shown(need)}, {what}")
            advice.append(then)
        told[one] = _joined(facts, advice)
    return told, notes


def _joined(facts: list[str], advice: list[str]) -> str:
    more = len(facts) - MOST_FAULTS
    ending = f", and {more} more" if more > 0 else ""
    return f"{', and '.join(facts[:MOST_FAULTS])}{ending}; {', '.join(dict.fromkeys(advice[:MOST_FAULTS]))}"


class _Rivalries:
    """Finds demands that exclude each other. Of all on a pack only the lowest ceiling and the highest floor can."""

    def __init__(self, demands: Mapping[str, list[tuple[str, Dependency]]]) -> None:
        self._demands = demands
        self._extremes: dict[str, tuple[_Demand, _Demand]] = {}

    def of(self, one: str, need: Dependency) -> _Demand | None:
        if need.id not in self._extremes:
            on = [_Demand(by, other, range_of(other.version)) for by, other in self._demands[need.id]]
            self._extremes[need.id] = (
                min(on, key=lambda demand: demand.range.high),
                max(on, key=lambda demand: demand.range.low),
            )
        mine = _Demand(one, need, range_of(need.version))
        for rival in (mine, *self._extremes[need.id]):
            if rival.range.excludes(mine.range):
                return rival
        return None


def _rivalry(one: str, need: Dependency, rival: _Demand) -> str:
    if rival.need == need:
        return "and no version is both"
    who = f"pack {rival.by!r}" if rival.by != one else "it also"
    return f"and {who} needs {_shown(rival.need)}: no version suits both"


def _way_out(one: str, need: Dependency, rival: _Demand) -> str:
    if rival.by == one:
        return f"correct the manifest of {one}"
    return f"uninstall {one} or {rival.by}, or change the version of one"


def _kept_out(one: str, need: Dependency, rival: _Demand) -> str:
    return (
        f"pack {rival.by!r} needs {_shown(rival.need)}, and pack {one!r} needs {_shown(need)}: no version suits both, "
        f"so only {rival.by} can run"
    )


def _admits(need: Dependency, version: str) -> bool:
    return SpecifierSet(need.version).contains(version, prereleases=True)


def _spread(present: Mapping[str, Manifest], falls: dict[str, _Fall]) -> None:
    """Let the packs fall that need a fallen one, each by the shortest of its chains."""
    needed_by: dict[str, list[tuple[str, Dependency]]] = {}
    for one in sorted(present):
        for need in present[one].dependencies:
            needed_by.setdefault(need.id, []).append((one, need))
    ahead = sorted(falls)
    for fallen in ahead:
        for one, need in needed_by.get(fallen, ()):
            if one not in falls:
                falls[one] = falls[fallen].taking(need)
                ahead.append(one)


def _shown(need: Dependency) -> str:
    return f"{need.id} {need.version}".rstrip()


def _drawn(cycle: tuple[str, ...], at: int) -> str:
    size = len(cycle)
    names = [cycle[(at + step) % size] for step in range(min(size, LONGEST_CHAIN))]
    if size > LONGEST_CHAIN:
        names = [*names[: LONGEST_CHAIN // 2], f"({size - LONGEST_CHAIN // 2} more)"]
    return " -> ".join([*names, cycle[at]])
