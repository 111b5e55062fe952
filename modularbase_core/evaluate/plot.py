"""The perplexity table as a picture: SVG, written by hand, as a table of coloured cells needs no plotting library.

Colours tell ratios: blue is lower, red is higher, white is no change. A number stands in every cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape

from modularbase_core.errors import DataError

_WIDTH, _HEIGHT, _GAP, _MARGIN, _TOP = 108, 50, 3, 24, 104
_LETTER: Final = 7.4  # about the width of one, to leave room for names
_LONGEST_NAME: Final = 24
_ALL: Final = ""
"""Stands for all domains together, as a domain's name is never empty."""
_INK, _FAINT = "#1f2328", "#57606a"
# the ends of ColorBrewer's RdBu, which colour-blind people tell apart too
_LOWER, _NEUTRAL, _HIGHER = (33, 102, 172), (247, 247, 247), (178, 24, 43)


@dataclass(frozen=True, slots=True)
class _Cell:
    """What is written, with a smaller line below. heat: -1 the deepest blue, 1 the deepest red."""

    value: str
    below: str
    heat: float


# Any: plain JSON values, here and below
def plot_perplexity(described: Mapping[str, Any]) -> str:
    """Draw an evaluation's perplexities as SVG, coloured by their ratio to base and general chat alone.

    Raises DataError where there are none.
    """
    rows = described["metrics"].get("perplexity")
    if not rows:
        raise DataError("there is no perplexity to plot; evaluate with --metrics perplexity")
    cells: dict[str, dict[str, _Cell]] = {}
    for name, row in rows.items():
        for domain, one in _columns(row):
            ratio = one.get("ratio", 1.0)
            below = f"×{ratio:.2f}" if "ratio" in one else ""
            cells.setdefault(name, {})[domain] = _Cell(_short(one["perplexity"]), below, _heat(ratio, 4.0))
    ends = ("×¼ or less", "×1", "×4 or more")
    return _drawn(cells, "Perplexity", "lower is better; colour and × against base and general chat alone", ends)


def plot_forgetting(compared: Mapping[str, Any]) -> str:
    """Draw what a change did to perplexities, as SVG: after, coloured by the change. Raises DataError without any."""
    rows = compared["metrics"].get("perplexity")
    if not rows:
        raise DataError("the two evaluations have no perplexity in common to plot")
    cells: dict[str, dict[str, _Cell]] = {}
    for name, row in rows.items():
        for domain, one in _columns(row):
            change = "no change" if abs(one["change"]) < 0.0005 else f"{one['change']:+.1%}".replace("-", "−")
            below = f"{_short(one['before'])} before, {change}"
            cells.setdefault(name, {})[domain] = _Cell(_short(one["after"]), below, _heat(1 + one["change"], 1.25))
    ends = ("−20 % or less", "no change", "+25 % or more")
    return _drawn(cells, "Forgetting", "perplexity after a change of weights; red is worse than before", ends, 128)


def _columns(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return a row's cells by domain, with all of them together last where there are several."""
    domains = list(row["domains"].items())
    return [*domains, (_ALL, row["all"])] if len(domains) > 1 and row["all"] else domains


def _heat(ratio: float, deepest: float) -> float:
    if not ratio > 0 or math.isinf(ratio):
        return 1.0
    return max(-1.0, min(1.0, math.log(ratio) / math.log(deepest)))


def _short(value: float) -> str:
    if not math.isfinite(value) or value >= 1e6:
        return f"{value:.1e}" if math.isfinite(value) else "∞"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _drawn(
    cells: Mapping[str, Mapping[str, _Cell]], title: str, told: str, ends: Sequence[str], width: int = _WIDTH
) -> str:
    columns = list(dict.fromkeys(domain for row in cells.values() for domain in row))
    left = _MARGIN + _LETTER * max(len(_cut(name)) for name in cells) + 12
    # what is over all domains stands a little apart
    places = {name: left + at * (width + _GAP) + 8 * (name == _ALL) for at, name in enumerate(columns)}
    across = max(places[columns[-1]] + width + _MARGIN, _LETTER * len(told) + 2 * _MARGIN)
    down = _TOP + len(cells) * (_HEIGHT + _GAP) + 76
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{across:.0f}" height="{down}" '
        f'viewBox="0 0 {across:.0f} {down}" font-family="Inter, Helvetica, Arial, sans-serif">',
        f'<rect width="{across:.0f}" height="{down}" fill="#ffffff"/>',
        _text(_MARGIN, 38, title, 20, weight=600),
        _text(_MARGIN, 60, told, 13, _FAINT),
    ]
    for domain, x in places.items():
        out.append(_text(x + width / 2, _TOP - 12, _cut(domain or "all", 15), 13, weight=600, anchor="middle"))
    for line, (name, row) in enumerate(cells.items()):
        top = _TOP + line * (_HEIGHT + _GAP)
        out.append(_text(left - 12, top + _HEIGHT / 2 + 5, _cut(name), 13, anchor="end"))
        for domain, cell in row.items():
            out += _box(places[domain], top, width, cell)
    out += _legend(left, down - 46, ends)
    return "\n".join([*out, "</svg>\n"])


def _box(x: float, y: float, width: int, cell: _Cell) -> list[str]:
    red, green, blue = colour = _colour(cell.heat)
    ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else _INK
    first = y + _HEIGHT / 2 + (-2 if cell.below else 5)
    out = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{_HEIGHT}" rx="5" fill="{_hex(colour)}"/>',
        _text(x + width / 2, first, cell.value, 15, ink, weight=600, anchor="middle"),
    ]
    if cell.below:
        out.append(_text(x + width / 2, first + 17, cell.below, 11, ink, anchor="middle"))
    return out


def _legend(x: float, y: float, ends: Sequence[str]) -> list[str]:
    stops = "".join(
        f'<stop offset="{step / 10:.1f}" stop-color="{_hex(_colour(step / 5 - 1))}"/>' for step in range(11)
    )
    gradient = f'<defs><linearGradient id="heat">{stops}</linearGradient></defs>'
    bar = f'<rect x="{x:.1f}" y="{y}" width="300" height="10" rx="5" fill="url(#heat)"/>'
    anchors = ("start", "middle", "end")
    marks = [
        _text(x + 150 * number, y + 26, text, 11, _FAINT, anchor=anchors[number]) for number, text in enumerate(ends)
    ]
    return [gradient, bar, *marks]


def _colour(heat: float) -> tuple[int, int, int]:
    end, part = (_HIGHER if heat > 0 else _LOWER), abs(heat)
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(_NEUTRAL, end, strict=True))
    return red, green, blue


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _text(
    x: float, y: float, text: str, size: int, fill: str = _INK, *, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _cut(name: str, longest: int = _LONGEST_NAME) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
