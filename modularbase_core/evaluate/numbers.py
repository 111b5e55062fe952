"""Numbers as people write them in answers: of 1,000, 1000.0, $1000 and 1,000 km the value alone counts."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Final

_LONGEST: Final = 60  # digits; what is longer is no answer
_DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER: Final = re.compile(
    r"(?P<minus>(?:(?<![\w)\].])-\s?)?)"  # of 5-3 the second number is 3, not -3
    r"(?:[$€£¥]\s?(?P<inner>-?))?"
    rf"(?<![\w.])(?<!\d,)(?P<digits>{_DIGITS})"
    r"(?P<power>(?:[eE][+-]?\d{1,2}(?!\w))?)"
    r"(?:(?:\s(?P<part>\d+))?\s?/\s?(?P<under>\d+)(?![\d/.]))?"  # 3/4, and 1 1/2
    r"(?![a-zA-Z]*\d)"
)
_DASHES: Final = str.maketrans("−–﹣－，", "----,")  # as they are typed
_UNIT: Final = re.compile(r"\s*%?\s*(?:[^\W\d]+[./\d]*\s*){0,2}[.。]?")


def numbers_in(text: str) -> list[Fraction]:
    """Return the values of the numbers in `text`, in order.

    Thousands' commas, currencies, percent signs and units make no difference; 3/4 is 0.75 and 1 1/2 is 1.5. Digits
    within words and absurdly long numbers are none.
    """
    found = (_value(match) for match in _NUMBER.finditer(_plain(text)))
    return [value for value in found if value is not None]


def whole_number(text: str) -> Fraction | None:
    """Return the value of a text that is one number, perhaps with a currency and a unit; else None."""
    text = _plain(text).strip()
    match = _NUMBER.match(text)
    return _value(match) if match and _UNIT.fullmatch(text[match.end() :]) else None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_DASHES)


def _value(match: re.Match[str]) -> Fraction | None:
    digits = match["digits"].replace(",", "")
    if len(digits) > _LONGEST or len(match["under"] or match["part"] or "") > _LONGEST:
        return None
    value = Fraction(digits + match["power"])
    under = Fraction(match["under"]) if match["under"] else None
    if match["part"] and under:
        value += Fraction(match["part"]) / under
    elif under:
        value /= under
    return -value if match["minus"] or match["inner"] else value
