"""`modularbase session list`: the conversations that are kept, and what is wrong with those that cannot be."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from modularbase_core.cli.report import in_bytes, json_option, lay_out, print_json
from modularbase_core.cli.settings import read_settings, settings_options

if TYPE_CHECKING:
    from modularbase_core.host.session_files import SessionInfo

_STEPS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"))


@click.command(name="list", short_help="List conversations that have a name.")
@json_option
@settings_options
def list_all(as_json: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """List the conversations that have a name, the last used first."""
    from modularbase_core.host.session_files import list_sessions

    config = read_settings(config_file, cache_dir)
    sessions = list_sessions(config)
    if as_json:
        print_json([_plain(one) for one in sessions])
    elif not sessions:
        click.echo(f"no session in {config.sessions_dir} yet; `modularbase chat --session NAME` begins one")
    else:
        click.echo(format_sessions(sessions, time.time()))


def format_sessions(sessions: list[SessionInfo], now: float) -> str:
    """Lay the sessions out as a table, a line each, then the problems. now: seconds since 1970."""
    rows = [
        (
            one.name,
            "in use" if one.in_use else "damaged" if one.tokens is None else f"{one.tokens:,} tokens",
            in_bytes(one.bytes_on_disk),
            ago(now - one.used),
            str(one.base or ""),
        )
        for one in sessions
    ]
    return "\n".join([*lay_out(rows), *(f"problem: {one.problem}" for one in sessions if one.problem)])


def ago(seconds: float) -> str:
    """Spell out how long ago something was."""
    for length, unit in _STEPS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


# Any: plain JSON values
def _plain(one: SessionInfo) -> dict[str, Any]:
    return {
        "name": one.name,
        "tokens": one.tokens,
        "bytes": one.bytes_on_disk,
        "used": datetime.fromtimestamp(one.used, timezone.utc).isoformat(timespec="seconds"),
        "base": {"id": one.base.id, "version": one.base.version, "digest": one.base.digest} if one.base else None,
        "in_use": one.in_use,
        "problem": one.problem or None,
    }
