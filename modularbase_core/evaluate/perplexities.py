"""Perplexity and bits per byte of each domain under each row's packs, and their ratio to the row without packs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modularbase_core.evaluate.cases import Case
from modularbase_core.evaluate.likelihood import Done, score_rows
from modularbase_core.evaluate.selection import NONE, Selection
from modularbase_core.turn.stages import Route

if TYPE_CHECKING:
    from modularbase_core.train.perplexity import Likelihood, Scorer


# Any: plain JSON values
def perplexities(
    cases: Sequence[Case],
    rows: Sequence[Selection],
    routes: Sequence[Route | None],
    scorer: Scorer,
    done: Done | None = None,
) -> dict[str, dict[str, Any]]:
    """Return each row's perplexities by domain and over all, with their ratios to the row without packs."""
    totals: dict[str, dict[str, list[Likelihood]]] = {row.name: {} for row in rows}
    scored = score_rows([case.record for case in cases], rows, routes, scorer, done)
    for row, likelihoods in zip(rows, scored, strict=True):
        for case, one in zip(cases, likelihoods, strict=True):
            totals[row.name].setdefault(case.domain, []).append(one)
    return {name: _row(domains, totals.get(NONE)) for name, domains in totals.items()}


# Any: plain JSON values
def _row(domains: Mapping[str, list[Likelihood]], without: Mapping[str, list[Likelihood]] | None) -> dict[str, Any]:
    every = [one for marks in domains.values() for one in marks]
    every_without = None if without is None else [one for marks in without.values() for one in marks]
    cells = {name: _cell(marks, None if without is None else without[name]) for name, marks in domains.items()}
    return {"all": _cell(every, every_without), "domains": {name: cell for name, cell in cells.items() if cell}}


def _cell(marks: list[Likelihood], without: list[Likelihood] | None) -> dict[str, Any] | None:
    """Return what there is to say of some records; None where no token of theirs counts."""
    counting = [one for one in marks if one.tokens]
    if not counting:
        return None
    total, *rest = counting
    for one in rest:
        total = total + one
    out = {"perplexity": total.perplexity, "bits_per_byte": total.bits_per_byte, "records": len(counting)}
    out |= {"nats": total.nats, "tokens": total.tokens, "bytes": total.bytes}
    if without is not None:
        out["ratio"] = total.perplexity / _cell(without, None)["perplexity"]  # type: ignore[index]  # the same records
    return out
