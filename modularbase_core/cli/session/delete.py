"""`modularbase session delete`: asks, then a conversation is gone."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from modularbase_core.cli.report import in_bytes
from modularbase_core.cli.settings import read_settings, settings_options
from modularbase_core.errors import SessionError


@click.command(short_help="Delete a conversation.")
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@settings_options
def delete(name: str, yes: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Delete session NAME; it cannot be brought back."""
    from modularbase_core.host.session_files import delete_session, find_session

    config = read_settings(config_file, cache_dir)
    if not yes:
        one = find_session(config, name)
        if not one.in_use:  # else it is refused below
            _ask(f"Delete {name} ({_told(one.tokens)}, {in_bytes(one.bytes_on_disk)})?")
    delete_session(config, name)
    click.echo(f"deleted {name}")


def _ask(question: str) -> None:
    if not (sys.stdin and sys.stdin.isatty()):
        raise SessionError("nobody is there to be asked; give --yes to delete without a question")
    click.confirm(question, abort=True, err=True)


def _told(tokens: int | None) -> str:
    return "damaged" if tokens is None else f"{tokens:,} tokens"
