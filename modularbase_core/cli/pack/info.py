"""`modularbase pack info`: everything about one installed pack."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.report import json_option, lay_out, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ManifestError, PackError

if TYPE_CHECKING:
    from modularbase_core.packs.catalog import Catalog, InstalledPack

SHOWN_EXAMPLES = 5


@click.command(short_help="Show what a pack says about itself and whether it fits.")
@click.argument("name")
@click.option("--card", is_flag=True, help="Print the model card alone.")
@json_option
@settings_options
def info(name: str, card: bool, as_json: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Show what pack NAME says about itself, and whether it fits the installed base."""
    config = read_settings(config_file, cache_dir)
    catalog, _ = installed(config)
    one = catalog.find(name)
    if card:
        if not (text := _card(one)):
            raise PackError(f"pack {one.id!r} brings no model card; ask its author for one")
        click.echo(text)
        return
    report = describe_pack(one, catalog, config.base)
    if as_json:
        print_json(report)
    else:
        click.echo("\n".join(_lines(report, has_card=bool(_card(one)))))


# Any: plain JSON values
def describe_pack(one: InstalledPack, catalog: Catalog, base_id: str | None) -> dict[str, Any]:
    """Describe a pack; `refused` says why it cannot run, None where it can."""
    from modularbase_core.packs.install import installed_version

    manifest = one.manifest
    return {
        **{key: value for key, value in manifest.to_dict().items() if key != "architecture"},
        "distribution": one.distribution,
        "distribution_version": installed_version(one.distribution) if one.distribution else None,
        "directory": str(one.pack.directory),
        "model_card": next((str(path) for path in _cards(one)), None),
        "examples": _examples(one),
        "fetched": not one.absent,
        "absent": list(one.absent),
        "refused": _refused(one, catalog, base_id),
        "other_versions": [
            {"version": other.manifest.version, "distribution": other.distribution}
            for other in catalog.versions(one.id)[1:]
        ],
    }


def _refused(one: InstalledPack, catalog: Catalog, base_id: str | None) -> str | None:
    from modularbase_core.packs.resolve import choose_base, line_up

    try:
        if one.manifest.type == "base":
            base = choose_base(catalog, base_id)
            return None if one.id == base.id else f"the settings choose the base {base.id!r}"
        return line_up(catalog, base_id).refused.get(one.id)
    except PackError as error:
        return str(error)


def _examples(one: InstalledPack) -> list[str]:
    from modularbase_core.sdk.examples import read_examples

    try:
        return [example.prompt for example in read_examples(one.pack.examples)] if one.pack.examples.is_file() else []
    except ManifestError:  # `verify` tells it
        return []


def _cards(one: InstalledPack) -> list[Path]:
    return [path for name in ("README.md", "MODEL_CARD.md") if (path := one.pack.directory / name).is_file()]


def _card(one: InstalledPack) -> str:
    """Return the model card: a file beside the data, or else the description of the distribution; empty if none."""
    from importlib_metadata import PackageNotFoundError, metadata

    for path in _cards(one):
        return path.read_text(encoding="utf-8", errors="replace").rstrip()
    with suppress(PackageNotFoundError):
        return str(metadata(one.distribution).json.get("description", "")).rstrip() if one.distribution else ""
    return ""


def _lines(report: dict[str, Any], *, has_card: bool) -> list[str]:
    base = " ".join(filter(None, (report.get("base"), " or ".join(report["base_compatibility"]))))
    needs = [f"{item['id']} {item['version']}".rstrip() for item in report["dependencies"]]
    source = " ".join(filter(None, (report["distribution"], report["distribution_version"]))) or "no distribution"
    rows = [
        (report["id"], f"{report['version']}, {report['type']}, {report['size_mb']:.1f} MB"),
        ("name", report["name"]),
        ("about", report["description"]),
        ("also called", ", ".join(report["aliases"])),
        ("languages", ", ".join(report["languages"])),
        ("keywords", ", ".join(report["keywords"])),
        ("licence", report["licence"]),
        ("made for", base),
        ("needs", ", ".join(needs)),
        ("else answers", ", ".join(report["fallback"])),
        ("network", f"{report['layers']} layers, {report['hidden_size']} wide" if report.get("layers") else ""),
        ("comes from", source),
        ("lies in", report["directory"]),
        ("model card", report["model_card"] or ("`--card` prints it" if has_card else "none")),
        ("downloads", _fetched(report)),
        ("can run", f"no: {report['refused']}" if report["refused"] else "yes"),
    ]
    rows += [
        ("hidden", f"{one['version']} of {one['distribution']}, another version") for one in report["other_versions"]
    ]
    lines = lay_out([row for row in rows if row[1]])
    shown = report["examples"][:SHOWN_EXAMPLES]
    lines += ["examples:", *(f"  {shorten(text, 100, placeholder=' ...')}" for text in shown)] if shown else []
    more = len(report["examples"]) - len(shown)
    return [*lines, f"  and {more} more"] if more else lines


def _fetched(report: dict[str, Any]) -> str:
    if not report["downloads"]:
        return ""
    if report["fetched"]:
        return "fetched"
    return f"{', '.join(report['absent'])} not fetched; run `modularbase pack fetch {report['id']}`"
