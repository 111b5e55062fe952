"""An evaluation as tables for people: rows are packs, columns are domains, numbers stand right under each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

# Any: plain JSON values, here and below
Cell = Mapping[str, Any]


def result_tables(described: Mapping[str, Any]) -> list[str]:
    """Lay out every metric of an evaluation (`evaluate.document`), a blank line between them."""
    metrics = described["metrics"]
    out: list[str] = []
    if rows := metrics.get("perplexity"):
        out += _table("perplexity, and against none: base and general chat alone", rows, _perplexity)
        out += _table("bits per byte", rows, _bits)
    if found := metrics.get("routing"):
        out += _table("routing: messages that reach their pack, %", {"routed": found}, _share)
        out += _confusion(found["confusion"])
    if rows := metrics.get("choice"):
        chance = next(iter(rows.values()))["all"]["chance"]
        out += _table(f"choice: the likeliest option is right, % (chance {100 * chance:.1f})", rows, _share)
        if any("by_text" in row["all"] for row in rows.values()):
            out += _table("choice, by the options' texts, %", rows, _share_by_text)
    if rows := metrics.get("exact"):
        out += _table("exact: the answer is right, %", rows, _share)
    if rows := metrics.get("pass@k"):
        for key in (key for key in next(iter(rows.values()))["all"] if key.startswith("pass@")):
            out += _table(f"{key}, %", rows, partial(_rate, key))
        out += _endings(rows)
    return [*out[1:], "", _footer(described)]


def compared_tables(compared: Mapping[str, Any]) -> list[str]:
    """Lay out what changed (`evaluate.forgetting`)."""
    from modularbase_core.evaluate.forgetting import worst

    packs = compared["packs"].items()
    out = [f"{pack}: {one['before'] or 'absent'} -> {one['after'] or 'absent'}, other weights" for pack, one in packs]
    for metric, rows in compared["metrics"].items():
        measure = next(cell["measure"] for row in rows.values() for cell in row["domains"].values())
        named = metric if measure in (metric, "accuracy") else measure.replace("_", " ")
        if metric == "perplexity":
            out += _table(f"{named} now, and its change", rows, _relative)
        else:
            out += _table(f"{named} now, %, and its change in points", rows, _points)
    if risen := worst(compared):
        row, domain, change = risen
        out += ["", f"the most is forgotten by {row} of {domain}: {_signed(change)}%"]
    return out if compared["packs"] else out[1:]


def _table(title: str, rows: Mapping[str, Cell], show: Callable[[Any], tuple[str, str]]) -> list[str]:
    """Lay out rows of {"domains": {name: cell}, "all": cell}; show: a cell as a number and what stands beside it."""
    names = list(dict.fromkeys(domain for row in rows.values() for domain in row["domains"]))
    columns = [*names, "all"] if len(names) > 1 else names
    lines = [["", *(text for name in columns for text in (name, ""))]]
    for name, row in rows.items():
        cells = [row["domains"].get(column) if column in names else row["all"] for column in columns]
        lines.append([name, *(text for cell in cells for text in (show(cell) if cell else ("-", "")))])
    return ["", title, *_aligned(lines)]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lay lines out, the first column to the left and the others to the right; an empty column takes no room."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    out = []
    for line in lines:
        parts = [line[0].ljust(widths[0])]
        for number, (text, width) in enumerate(zip(line[1:], widths[1:], strict=True)):
            if width:
                parts.append((" " if number % 2 else "  ") + text.rjust(width))
        out.append("".join(parts).rstrip())
    return out


def _perplexity(cell: Cell) -> tuple[str, str]:
    return _one_or_two(cell["perplexity"]), f"×{cell['ratio']:.2f}" if "ratio" in cell else ""


def _one_or_two(value: float) -> str:
    return _number(value, 1 if value >= 10 else 2)


def _share(cell: Cell | None) -> tuple[str, str]:
    if not cell or not cell["records"]:
        return "-", ""
    return _number(100 * cell["accuracy"], 1), f"±{100 * cell['stderr']:.1f}"


def _share_by_text(cell: Cell) -> tuple[str, str]:
    return _share(cell.get("by_text"))


def _bits(cell: Cell) -> tuple[str, str]:
    return _number(cell["bits_per_byte"], 3), ""


def _rate(key: str, cell: Cell) -> tuple[str, str]:
    return _number(100 * cell[key], 1), ""


def _relative(cell: Cell) -> tuple[str, str]:
    shown = _number(cell["after"], 3) if cell["measure"] == "bits_per_byte" else _one_or_two(cell["after"])
    return shown, f"{_signed(cell['change'])}%"


def _points(cell: Cell) -> tuple[str, str]:
    return _number(100 * cell["after"], 1), _signed(cell["change"])


def _signed(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return text if float(text) else "0.0"


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if math.isfinite(value) and abs(value) < 1e7 else f"{value:.1e}"


def _confusion(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Lay out how many messages of each pack (a row) went to which (a column)."""
    packs = list(dict.fromkeys([*counts, *(given for row in counts.values() for given in row)]))
    lines = [["", *(text for pack in packs for text in (pack, ""))]]
    for wanted, row in counts.items():
        lines.append([wanted, *(text for pack in packs for text in (str(row.get(pack, 0)), ""))])
    return ["", "messages of a pack (rows) that went to (columns)", *_aligned(lines)]


def _endings(rows: Mapping[str, Cell]) -> list[str]:
    out = ["", "programs by how they ended"]
    for name, row in rows.items():
        told = ", ".join(f"{kind} {count}" for kind, count in row["all"]["ended"].items())
        out.append(f"{name}: {told}")
    return out


def _footer(described: Mapping[str, Any]) -> str:
    taken, held = (sum(one[key] for one in described["files"]) for key in ("taken", "records"))
    of = f" of {held:,}" if held != taken else ""
    base = described["packs"][0]
    records = "record" if held == 1 else "records"
    return f"{taken:,} {records}{of}, {base['id']} {base['version']}, {sum(described['seconds'].values()):.0f} s"
