"""What a change of weights cost where: one evaluation against an earlier one, cell by cell.

The table of FlexOlmo (Shi et al., 2025): packs are rows, domains columns. Perplexities are compared where both read the
same tokens, bits per byte where the tokenizers differ, and nothing where the texts do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from modularbase_core.errors import DataError

_SETTINGS: Final = (
    *("max_tokens", "temperature", "seed", "samples"),
    *("threshold", "packs_per_turn", "fusion", "contradiction"),
)
"""Those that figures depend on."""
_VISIBLE: Final = 0.0005  # less is what another order of sums makes


# Any: plain JSON values, here and below
def forgetting(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both measured, before and after, with the change: relative of perplexities, else the difference.

    Cells stand under metric and row as in an evaluation: `domains` by name, and `all` records. Raises DataError where
    the two have nothing in common.
    """
    notes = list(_differences(before, after))
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for metric, rows in after["metrics"].items():
        earlier = before["metrics"].get(metric)
        if earlier is None:
            continue
        if metric == "routing":
            rows, earlier = {"routed": rows}, {"routed": earlier}
        table = {name: _row(metric, earlier[name], row, notes) for name, row in rows.items() if name in earlier}
        if table := {name: cells for name, cells in table.items() if cells["domains"]}:
            out[metric] = table
    if not out:
        raise DataError("the two evaluations have no figure in common; evaluate the same files with the same rows")
    return {"metrics": out, "packs": _packs(before, after), "notes": list(dict.fromkeys(notes))}


def worst(compared: Mapping[str, Any]) -> tuple[str, str, float] | None:
    """Return row, domain and relative change of the perplexity that rose the most, or None where none rose visibly."""
    cells = [
        (name, domain, cell["change"])
        for name, row in compared["metrics"].get("perplexity", {}).items()
        for domain, cell in row["domains"].items()
    ]
    risen = max(cells, key=lambda one: one[2], default=None)
    return risen if risen and risen[2] >= _VISIBLE else None


def _row(metric: str, before: Mapping[str, Any], after: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    cells = {
        domain: _cell(metric, before["domains"].get(domain), cell, domain, notes)
        for domain, cell in after["domains"].items()
    }
    every = _cell(metric, before["all"], after["all"], "", notes)
    return {"domains": {domain: cell for domain, cell in cells.items() if cell}, "all": every}


def _cell(
    metric: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, domain: str, notes: list[str]
) -> dict[str, Any] | None:
    """Compare a cell, of a domain or with an empty name of all records; None where that cannot be done."""
    if before is None or after is None:
        return None
    if metric == "perplexity":
        measure = "perplexity"
        if before["tokens"] != after["tokens"]:
            if before["bytes"] != after["bytes"] or not after["bytes"]:
                if domain:
                    notes.append(f"{domain} holds other texts than before, so it is not compared")
                return None
            measure = "bits_per_byte"
            notes.append("the tokenizers differ, so bits per byte are compared")
        change = after[measure] / before[measure] - 1 if before[measure] else 0.0
    else:
        measure = "accuracy"
        if metric == "pass@k":
            measure = next((key for key in after if key.startswith("pass@") and key in before), "")
        if not measure:
            return None
        if before["records"] != after["records"] and domain:
            notes.append(f"{domain} has {after['records']} records for {metric}, {before['records']} before")
        change = after[measure] - before[measure]
    return {"measure": measure, "before": before[measure], "after": after[measure], "change": change}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Say what makes the two less comparable: files, and settings that figures depend on."""
    files = [{one["sha256"]: one["taken"] for one in each.get("files", [])} for each in (before, after)]
    if files[0] != files[1]:
        yield "the two were not evaluated on the same files"
    for key in (
        "max_tokens",
        "temperature",
        "seed",
        "samples",
        "threshold",
        "packs_per_turn",
        "fusion",
        "contradiction",
    ):
        values = [each.get("settings", {}).get(key) for each in (before, after)]
        if values[0] != values[1]:
            yield f"{key} was {values[0]} and is {values[1]}"


def _packs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the packs whose weights came, went or changed, with their versions."""
    known = [{one["id"]: one for one in each.get("packs", [])} for each in (before, after)]
    out = {}
    for pack in dict.fromkeys([*known[0], *known[1]]):
        old, new = known[0].get(pack), known[1].get(pack)
        if old is None or new is None or old["weights_sha256"] != new["weights_sha256"]:
            out[pack] = {"before": old and old["version"], "after": new and new["version"]}
    return out
