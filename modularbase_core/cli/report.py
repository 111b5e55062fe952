"""How commands that read and report lay out tables and print JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import click

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object, *, one_line: bool = False) -> None:
    """Print plain values as JSON, on one line where a stream of them is printed."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if one_line else 2))


def in_bytes(count: int) -> str:
    """Spell out a number of bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def printable(text: str) -> str:
    """Return `text` without what a terminal obeys, but for tabs and line ends."""
    return _CONTROLS.sub("\ufffd", text)


def lay_out(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out as columns, a line each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
