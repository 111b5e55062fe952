"""`modularbase data list`: the public texts that our packs learnt from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from modularbase_core.cli.report import json_option, lay_out, print_json
from modularbase_core.errors import ConfigError, nearest
from modularbase_core.train.sources import CATALOGUE, read_catalogue

catalogue_option = click.option(
    "--catalogue",
    default=CATALOGUE,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="List of sources in TOML, in place of ours.",
)


@click.command(name="list", short_help="List the public texts that our packs learnt from.")
@click.option("--domain", help="List only what this pack learnt from: base, chat, python, ...")
@catalogue_option
@json_option
def list_sources(domain: str | None, catalogue: Path, as_json: bool) -> None:
    """List public texts: what they are, under which licence, which packs learnt from how much of them."""
    sources = list(read_catalogue(catalogue).values())
    domains = sorted({one for source in sources for one in source.domains})
    if domain is not None:
        if domain not in domains:
            raise ConfigError(f"no domain {domain!r}{nearest(domain, domains)}; use one of {', '.join(domains)}")
        sources = [source for source in sources if domain in source.domains]
    if as_json:
        print_json([asdict(source) for source in sources])
        return
    rows = [("name", "licence", "MB", "domains", "what")]
    rows += [
        (
            source.name,
            source.licence,
            f"{source.text_mb:.1f}".rjust(5) if source.text_mb else "",
            " ".join(source.domains),
            source.what,
        )
        for source in sources
    ]
    for line in lay_out(rows):
        click.echo(line)
    click.echo(f"{len(sources)} sources; `modularbase data fetch NAME --to FOLDER` brings one, --json tells where from")
