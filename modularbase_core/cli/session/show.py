"""`modularbase session show`: what was said in a conversation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from modularbase_core.cli.report import json_option, print_json, printable
from modularbase_core.cli.settings import installed, read_settings, settings_options

SHOWN: Final = 400
"""Characters of a message that are shown, unless all are asked for."""


@click.command(short_help="Show what was said.")
@click.argument("name")
@click.option("--full", is_flag=True, help="Shorten no message.")
@json_option
@settings_options
def show(name: str, full: bool, as_json: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Show the messages of session NAME in their order."""
    from modularbase_core.host.session_files import open_session
    from modularbase_core.host.transcript import reading_base, transcript

    config = read_settings(config_file, cache_dir)
    with open_session(config, name) as store:
        _, tokenizer, note = reading_base(installed(config)[0], config, store)
        messages = transcript(store, tokenizer)
        faults = store.take_faults()
    for sentence in [*faults, note] if note else faults:
        click.secho(f"note: {sentence}", dim=True, err=True)
    if as_json:
        print_json({"name": name, "messages": [asdict(one) for one in messages]})
        return
    for one in messages:
        cut = "" if one.whole else ", cut short"
        click.secho(f"{one.role} (token {one.token:,}{cut})", bold=True)
        click.echo(printable(one.text if full else _shortened(one.text)))
        click.echo()


def _shortened(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}... ({len(text):,} characters; --full shows them)"
