"""The rows of a table: which packs answer, or that the router chooses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modularbase_core.errors import InputError
from modularbase_core.packs.catalog import Catalog
from modularbase_core.packs.resolve import Lineup
from modularbase_core.turn.route import force
from modularbase_core.turn.stages import Route

NONE: Final = "none"
ROUTED: Final = "routed"


@dataclass(frozen=True, slots=True)
class Selection:
    """One row. packs: ids of those that answer, the first one leading; empty where the router chooses."""

    name: str
    packs: tuple[str, ...]

    def blend(self, route: Route | None) -> Mapping[str, float]:
        """Return the packs with their weights, as a turn has them; `route`: what the router chose."""
        chosen = force(self.packs) if self.packs else route
        assert chosen is not None, "what the router chooses must be asked of it"
        return {pack.id: pack.weight for pack in chosen.packs}


def without_packs(lineup: Lineup) -> Selection:
    """Return the row that others are compared with: base and general chat alone."""
    return Selection(NONE, (lineup.general_chat.id,))


def select(
    catalog: Catalog, lineup: Lineup, words: Sequence[str] = (), *, none: bool = False, every: bool = False, slots: int
) -> list[Selection]:
    """Return the rows that are asked for: without packs, each pack, `words` together, and as the router chooses.

    words: ids or aliases. The router chooses where nothing is named. Raises PackError for a pack that is not there, and
    InputError for one that cannot answer, or for more than `slots` hold at once.
    """
    rows = [without_packs(lineup)] if none or every else []
    if every:
        rows += [Selection(one.id, (one.id,)) for one in lineup.routable if one.id != lineup.general_chat.id]
    if words:
        ids = tuple(dict.fromkeys(_routable(catalog, lineup, word) for word in words))
        on_demand = [one for one in ids if one != lineup.general_chat.id]
        if len(on_demand) > slots:
            raise InputError(
                f"{', '.join(on_demand)} are {len(on_demand)} packs but {slots} slots hold no more at once; "
                "raise slots or name fewer packs"
            )
        row = Selection("+".join(ids), ids)
        rows += [row] if row.packs not in [one.packs for one in rows] else []
    if every or not rows:
        rows.append(Selection(ROUTED, ()))
    return rows


def _routable(catalog: Catalog, lineup: Lineup, word: str) -> str:
    pack = catalog.find(word)
    if pack.id not in {one.id for one in lineup.routable}:
        reason = lineup.refused.get(pack.id, f"it is the {pack.manifest.type}, which is always there")
        raise InputError(f"pack {word!r} cannot be asked to answer: {reason}")
    return pack.id
