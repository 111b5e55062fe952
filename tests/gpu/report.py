"""The report: a page for people, and all values as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Results = Mapping[str, dict[str, Any]]
"""What each section said, by label; "section", "set" and "precision" tell which it was."""


def write_report(results: Results, about: Mapping[str, Any], out: Path) -> None:
    """Write report.md and report.json into `out`."""
    (out / "report.json").write_text(json.dumps({"about": dict(about), "results": dict(results)}, indent=1))
    (out / "report.md").write_text(page(results, about))


def page(results: Results, about: Mapping[str, Any]) -> str:
    """Lay the results out in Markdown."""
    parts = ["# On this machine", ", ".join(f"{name} {value}" for name, value in about.items()) + "."]
    failed = [f"- {label}: {_why(one)}" for label, one in results.items() if one["ok"] is False]
    missed = [f"- {label}: {one.get('failed', '')}" for label, one in results.items() if one["ok"] is None]
    parts.append("\n".join(["**Failed:**", *failed]) if failed else "No check failed.")
    if missed:
        parts.append("\n".join(["Not run:", *missed]))
    for title, section, rows in (
        ("Programs beside their definition", "programs", _program_rows),
        ("Whole turns beside torch", "turns", _turn_rows),
        ("Memory's speed", "bandwidth", _bandwidth_rows),
        ("Tokens a second", "speed", _speed_rows),
        ("torch on the same networks, tokens a second", "peers", _peer_rows),
        ("Swaps", "swap", _swap_rows),
        ("Bytes beside the plan", "memory", _memory_rows),
    ):
        found = [one for one in results.values() if one["section"] == section and "failed" not in one]
        if found:
            parts += [f"## {title}", _table([row for one in found for row in rows(one, results)])]
    return "\n\n".join(parts) + "\n"


Row = dict[str, str]


def _program_rows(one: dict[str, Any], results: Results) -> list[Row]:
    return [
        {
            **_named(one),
            "network": artefact["kind"],
            "program": name,
            "worst error": f"{max(c['error'] for c in artefact['calls'] if c['program'] == name):.1e}",
            "bound": f"{artefact['bound']:.0e}",
        }
        for artefact in one["artefacts"]
        for name in dict.fromkeys(call["program"] for call in artefact["calls"])
    ]


def _turn_rows(one: dict[str, Any], results: Results) -> list[Row]:
    return [
        {
            **_named(one),
            "pack": pack,
            "logits' error": f"{told['error']:.1e}",
            "bound": f"{one['bound']:.0e}",
            "same token": f"{told['agree']:.0%}",
            "graphs change no bit": _yes(one["graphs_alike"]),
            "a swap changes no bit": _yes(one["swap_alike"]),
        }
        for pack, told in one["packs"].items()
    ]


def _bandwidth_rows(one: dict[str, Any], results: Results) -> list[Row]:
    rates = {"copy within, GB/s": f"{one['copy_gb_s']:.0f}", "from the host, GB/s": f"{one['from_host_gb_s']:.1f}"}
    return [{**rates, "65,536 logits to the host, µs": f"{one['logits_us']:.0f}"}]


def _speed_rows(one: dict[str, Any], results: Results) -> list[Row]:
    speed = next((two["copy_gb_s"] for two in results.values() if "copy_gb_s" in two), None)
    rows = []
    for kind in ("graphs", "eager"):
        told = one[kind]
        row = {**_named(one), "": kind, f"prefill {one['prompt']}": f"{told['prefill']:,.0f}"}
        row |= {f"decode {batch}": f"{rate:,.0f}" for batch, rate in told["decode"].items()}
        if speed:
            row["of memory's speed"] = f"{told['decode']['1'] * told['step_bytes'] / (speed * 1e9):.0%}"
        rows.append(row | {"graphs": str(one["recorded"]) if kind == "graphs" else ""})
    return rows


def _peer_rows(one: dict[str, Any], results: Results) -> list[Row]:
    rows = []
    for kind in ("eager", "compiled"):
        told = one[kind]
        row = {**_named(one), "": kind, "prefill": f"{told['prefill']:,.0f}" if "prefill" in told else ""}
        row |= {f"decode {batch}": f"{rate:,.0f}" for batch, rate in told["decode"].items()}
        rows.append(row | {"note": told.get("failed", "")})
    return rows


def _swap_rows(one: dict[str, Any], results: Results) -> list[Row]:
    note = "" if one["swapped"] else "the packs all have slots: nothing was swapped"
    row = {"MiB": f"{one['bytes'] / 2**20:.1f}", "ms": f"{one['ms']:.1f}", "GB/s": f"{one['gb_s']:.1f}"}
    row |= {"a step, ms": f"{one['step_ms']:.2f}", "beside swaps, ms": f"{one['step_beside_ms']:.2f}"}
    return [{**_named(one), **row, "note": note}]


def _memory_rows(one: dict[str, Any], results: Results) -> list[Row]:
    sizes = {name: f"{one[name] / 2**20:,.0f}" for name in ("planned", "measured", "total")}
    share = f"{one['measured'] / one['planned']:.0%}"
    return [{**_named(one), **{f"{name}, MiB": size for name, size in sizes.items()}, "of the plan": share}]


def _named(one: dict[str, Any]) -> Row:
    return {"set": one["set"], "weights": one["precision"]}


def _why(one: dict[str, Any]) -> str:
    if "failed" in one:
        return str(one["failed"])
    if one["section"] == "programs":
        bad = [f"{two['kind']} {two['worst']:.1e} > {two['bound']:.0e}" for two in one["artefacts"] if not two["ok"]]
        return "error too large: " + ", ".join(bad)
    if one["section"] == "speed":
        return "no call could be recorded as a graph; its log has the warning"
    if one["section"] == "memory":
        return f"{one['measured'] / 2**20:,.0f} MiB were taken of {one['total'] / 2**20:,.0f}"
    asked = {"graphs_alike": "graphs change bits", "swap_alike": "a swap changes bits"}
    told = [words for name, words in asked.items() if not one.get(name, True)]
    return ", ".join([*told, f"worst error {one['worst']:.1e}, bound {one['bound']:.0e}"])


def _table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
