"""Where the router sends messages, and how often that is the pack of their domain."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from modularbase_core.errors import BudgetError, InputError, PackError
from modularbase_core.evaluate.cases import Case
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import Catalog
from modularbase_core.packs.resolve import Lineup
from modularbase_core.turn.stages import Route

LONGEST_TEXT: Final = 2000
"""Characters of a plain text that a router is shown, as if somebody had sent them."""

Progress = Callable[[str, int, int], None]


def routes_of(cases: Sequence[Case], messages: Messages, progress: Progress) -> list[Route | None]:
    """Route every case by its first message; None where that is too long to be a message, or empty."""
    known: dict[str, Route | None] = {}
    out = []
    for number, case in enumerate(cases):
        text = case.message if case.asked else case.message[:LONGEST_TEXT]
        if text not in known:
            try:
                known[text] = messages.route(text)
            except (BudgetError, InputError):
                known[text] = None
        out.append(known[text])
        progress("routing", number + 1, len(cases))
    return out


# Any: plain JSON values
def routing(cases: Sequence[Case], routes: Sequence[Route | None], catalog: Catalog, lineup: Lineup) -> dict[str, Any]:
    """Return how many labelled messages reach their pack, and how many of each pack reach which.

    A domain that no pack here answers belongs to general chat. What could not be routed is no message.
    """
    wanted = {case.domain: pack_of(case.domain, catalog, lineup) for case in cases if case.labelled}
    confusion: dict[str, Counter[str]] = {}
    by_domain: dict[str, Counter[bool]] = {}
    for case, route in zip(cases, routes, strict=True):
        if case.labelled and route is not None:
            right, given = wanted[case.domain], route.ids[0]
            confusion.setdefault(right, Counter())[given] += 1
            by_domain.setdefault(case.domain, Counter())[right == given] += 1
    domains = {name: share(count[True], count.total()) for name, count in by_domain.items()}
    return {
        "all": share(sum(one["right"] for one in domains.values()), sum(one["records"] for one in domains.values())),
        "domains": domains,
        "packs": wanted,
        "confusion": {pack: dict(sorted(count.items())) for pack, count in sorted(confusion.items())},
    }


def pack_of(domain: str, catalog: Catalog, lineup: Lineup) -> str:
    """Return the id of the pack that a domain belongs to: of that id or alias, or else general chat."""
    try:
        found = catalog.find(domain).id
    except PackError:
        return lineup.general_chat.id
    return found if found in {one.id for one in lineup.routable} else lineup.general_chat.id


# Any: plain JSON values
def share(right: int, records: int) -> dict[str, Any]:
    """Return an accuracy with its standard error, of a binomial."""
    accuracy = right / records if records else 0.0
    error = math.sqrt(accuracy * (1 - accuracy) / records) if records else 0.0
    return {"accuracy": accuracy, "stderr": error, "right": right, "records": records}
