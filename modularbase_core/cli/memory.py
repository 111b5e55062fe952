"""`modularbase memory`, and what `/memory` tells in a conversation: what is held of it, where, and what came back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from modularbase_core.cli.report import in_bytes, json_option, lay_out, print_json, printable
from modularbase_core.cli.settings import installed, read_settings, settings_options

if TYPE_CHECKING:
    from modularbase_core.host.memory_report import MemoryReport

_FORMS: Final = {"exact": "exact", "int8": "int8", "int4": "int4", "summary": "summarised"}


@click.command(short_help="Show what is held of a conversation, and where.")
@click.argument("name")
@json_option
@settings_options
def memory(name: str, as_json: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Show what is held of session NAME, and what was brought back for its last answer."""
    from modularbase_core.host.memory_report import report_of
    from modularbase_core.host.session_files import open_session
    from modularbase_core.host.transcript import reading_base

    config = read_settings(config_file, cache_dir)
    with open_session(config, name) as store:
        base, tokenizer, note = reading_base(installed(config)[0], config, store)
        report = report_of(store, tokenizer, base.window)
        faults = store.take_faults()
    for sentence in [*faults, note] if note else faults:
        click.secho(f"note: {sentence}", dim=True, err=True)
    tell_memory(report, as_json=as_json, one_line=False)


def tell_memory(report: MemoryReport, *, as_json: bool, one_line: bool = True) -> None:
    """Print a report, as JSON on one line unless that is not wanted."""
    if as_json:
        print_json(_plain(report), one_line=one_line)
        return
    cold = ", ".join(f"{report.cold_tokens.get(form, 0):,} {told}" for form, told in _FORMS.items())
    share = report.bytes_on_disk / max(1, report.limit_bytes)
    disk = f"{in_bytes(report.bytes_on_disk)}, {share:.1%} of {in_bytes(report.limit_bytes)}"
    rows = [
        ("tokens", f"{report.tokens:,}"),
        ("hot", f"{report.hot_tokens:,}"),
        ("cold", cold),
        ("on disk", f"{disk}, {report.bytes_per_token:,.0f} bytes a token"),
    ]
    if report.shared_tokens:
        rows.append(("shared", f"{report.shared_tokens:,}, which an earlier conversation began with too"))
    if report.index_bytes:
        rows.append(("index", f"{in_bytes(report.index_bytes)} of memory"))
    click.echo("\n".join(lay_out(rows)))
    if report.recalled:
        click.echo("brought back for the last answer:")
    for page in report.recalled:
        who = f", {page.role}" if page.role else ""
        click.echo(f"  token {page.token:,} ({_share(page.token, report.tokens):.0%}){who}, found by {page.by}")
        click.secho(f"    {' '.join(printable(page.text).split())}", dim=True)


# Any: plain JSON values
def _plain(report: MemoryReport) -> dict[str, Any]:
    return {
        "tokens": report.tokens,
        "hot_tokens": report.hot_tokens,
        "cold_tokens": dict(report.cold_tokens),
        "bytes_on_disk": report.bytes_on_disk,
        "limit_bytes": report.limit_bytes,
        "bytes_per_token": round(report.bytes_per_token, 1),
        "index_bytes": report.index_bytes,
        "shared_tokens": report.shared_tokens,
        "recalled": [
            {**page._asdict(), "position": round(_share(page.token, report.tokens), 4)} for page in report.recalled
        ],
    }


def _share(token: int, tokens: int) -> float:
    return token / max(1, tokens)
