"""Between which versions a specifier leaves room, and whether two of them exclude each other.

What `!=` takes out is not looked at: a range may be wider than the specifier, never narrower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from packaging.specifiers import SpecifierSet
from packaging.version import Version

Bound = tuple[Version, int]

_BOTTOM: Final = Version("0.dev0")
_TOP: Final = Version("1!0")
"""Beyond every version without an epoch, and manifests allow none with one."""


@dataclass(frozen=True, slots=True)
class Range:
    """low: a version, and 1 where it is itself too low. high: a version, and 1 where it is itself allowed."""

    low: Bound = (_BOTTOM, 0)
    high: Bound = (_TOP, 0)

    def excludes(self, other: Range) -> bool:
        """Tell whether no version lies in both; of a range and itself, whether none lies in it."""
        (low, too_low), (high, allowed) = max(self.low, other.low), min(self.high, other.high)
        return low > high or (low == high and (too_low == 1 or allowed == 0))


def range_of(specifier: str) -> Range:
    """Return the range of a specifier such as `>=1.0,<2`."""
    lows, highs = [Range().low], [Range().high]
    for clause in SpecifierSet(specifier):
        operator, text = clause.operator, clause.version
        if operator == "==" and text.endswith(".*"):
            release = Version(text[:-2]).release
            lows.append((Version(f"{text[:-2]}.dev0"), 0))
            highs.append((_after(release), 0))
            continue
        if operator == "!=":
            continue
        version = Version(text)
        if operator in ("==", ">=", ">", "~="):
            lows.append((version, int(operator == ">")))
        if operator in ("==", "<=", "<"):
            highs.append((version, int(operator != "<")))
        if operator == "~=":
            highs.append((_after(version.release[:-1]), 0))
    return Range(max(lows), min(highs))


def _after(release: Iterable[int]) -> Version:
    """Return the first version that does not begin with `release`, and is higher."""
    *rest, last = release
    return Version(".".join(map(str, (*rest, last + 1))) + ".dev0")
