"""How commands that read and report lay out tables and print JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object, *, one_line: bool = False) -> None:
    """Print plain values as JSON, on one line where a stream of them is printed."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if one_line else 2))


def lay_out(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out as columns, a line each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
