"""How commands that read and report print JSON."""

from __future__ import annotations

import json

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object, *, one_line: bool = False) -> None:
    """Print plain values as JSON, on one line where a stream of them is printed."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if one_line else 2))
