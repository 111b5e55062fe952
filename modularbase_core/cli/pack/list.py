"""`modularbase pack list`: what is installed, what of it cannot run and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.report import json_option, lay_out, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import PackError

if TYPE_CHECKING:
    from modularbase_core.packs.catalog import Catalog


@click.command(name="list", short_help="List installed packs, what cannot run, what is broken.")
@json_option
@settings_options
def list_packs(as_json: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """List the packs that are installed, and what is broken and why."""
    config = read_settings(config_file, cache_dir)
    report = describe_packs(installed(config)[0], config.base)
    if as_json:
        print_json(report)
    else:
        click.echo(format_packs(report))


# Any: plain JSON values
def describe_packs(catalog: Catalog, base_id: str | None) -> dict[str, Any]:
    """Describe packs and broken plugins; `refused` says why a sound pack cannot run on this base.

    note: what there is to know of one that can, such as that an older version of it is used.
    """
    from modularbase_core.packs.resolve import line_up

    refused: dict[str, str] = {}
    notes: dict[str, str] = {}
    problem = None
    try:
        lineup = line_up(catalog, base_id)
        refused, notes = lineup.refused, lineup.notes
    except PackError as error:
        problem = str(error)
    return {
        "packs": [
            {
                "id": one.id,
                "aliases": list(one.manifest.aliases),
                "name": one.manifest.name,
                "version": one.manifest.version,
                "type": one.manifest.type,
                "base": one.manifest.base,
                "languages": list(one.manifest.languages),
                "size_mb": one.manifest.size_mb,
                "licence": one.manifest.licence,
                "description": one.manifest.description,
                "distribution": one.distribution,
                "directory": str(one.pack.directory),
                "absent": list(one.absent),
                "refused": refused.get(one.id),
                "note": notes.get(one.id),
            }
            for one in catalog.packs
        ],
        "broken": [
            {"name": one.name, "distribution": one.distribution, "reason": one.reason} for one in catalog.broken
        ],
        "problem": problem,
    }


def format_packs(report: dict[str, Any]) -> str:
    """Lay the description out as a table, a line a pack."""
    rows = [
        (
            one["id"] + (f" ({', '.join(one['aliases'])})" if one["aliases"] else ""),
            one["version"],
            one["type"],
            f"{one['size_mb']:.1f} MB",
            one["distribution"],
        )
        for one in report["packs"]
    ]
    lines = lay_out(rows)
    lines += [f"refused: {one['refused']}" for one in report["packs"] if one["refused"]]
    lines += [f"note: {one['note']}" for one in report["packs"] if one["note"]]
    lines += [f"broken: {one['name']} of {one['distribution']}: {one['reason']}" for one in report["broken"]]
    if report["problem"]:
        lines.append(f"chat cannot start: {report['problem']}")
    return "\n".join(lines)
