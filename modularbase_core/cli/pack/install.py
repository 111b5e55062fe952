"""`modularbase pack install`: looks into wheels, lets pip install them, fetches weights, shows what changed."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.pack.list import describe_packs
from modularbase_core.cli.pack.sources import fetch_weights, pip_of, source_options, sources
from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ModularBaseError, PackIncompatible

if TYPE_CHECKING:
    from modularbase_core.config import EngineConfig
    from modularbase_core.packs.catalog import Catalog, InstalledPack
    from modularbase_core.packs.install import Found, Target
    from modularbase_core.packs.pip import Pip, Sources


@click.command(short_help="Install packs with pip: by name, wheel, folder or address.")
@click.argument("targets", nargs=-1, required=True, metavar="PACK...")
@click.option("-U", "--upgrade", is_flag=True, help="Look for a newer version of what is installed.")
@click.option("--force", is_flag=True, help="Install a pack that does not fit the base.")
@click.option("--no-deps", is_flag=True, help="Leave the pack's dependencies out.")
@click.option("--no-fetch", is_flag=True, help="Leave weights that are downloaded apart for `pack fetch`.")
@click.option("--no-takeover", is_flag=True, help="Do not work out what the pack takes over from others.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@source_options
@json_option
@settings_options
@click.pass_context
# Any: the switches and pip's options, by name
def install(
    ctx: click.Context,
    /,
    targets: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
    **options: Any,
) -> None:
    """Install each PACK with pip: NAME, NAME@1.0.0, a wheel, a project folder or an address.

    NAME is a pack's id (python_code), the end of its distribution's name (python) or all of it. Each wheel is looked
    into first; one that is no pack, is damaged or does not fit the base is refused and nothing is installed.
    """
    from modularbase_core.packs.catalog import weights_store
    from modularbase_core.packs.install import install as install_wheels

    config = read_settings(config_file, cache_dir)
    before, _ = installed(config)
    where = sources(options["index_url"], options["extra_index_url"], options["find_links"], options["pre"])
    pip = pip_of(quiet)
    report: dict[str, Any] = {"already": [], "notes": []}
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        wanted = _wanted(targets, before, options["upgrade"], report)
        found = _find(wanted, pip, where, Path(scratch), options["upgrade"], report)
        _check(found, before, config, options["force"], report)
        if found:
            install_wheels(found, pip, where, dependencies=not options["no_deps"])
    after = _rediscovered(found, config, before)
    changed = _changed(before, after, found)
    faults: list[str] = []
    if not options["no_fetch"]:
        again = [one for one in after.packs if one.distribution in report["already"]]
        report["fetched"], faults = fetch_weights([*changed, *again], weights_store(config.cache_dir), quiet=quiet)
    _describe(before, after, changed, config, report)
    if not options["no_takeover"] and any(one["was"] is None and not one["refused"] for one in report["changed"]):
        _take_over(before, after, config, quiet, report)
    if as_json:
        print_json({key: value for key, value in report.items() if key != "table"})
    else:
        click.echo("\n".join(_lines(report)))
    for fault in faults:
        click.echo(f"error: {fault}", err=True)
    if faults:
        ctx.exit(1)


# Any, here and below: plain JSON values
def _wanted(targets: tuple[str, ...], before: Catalog, upgrade: bool, report: dict[str, Any]) -> list[Target]:
    """Understand the arguments; note those that are installed and sound already."""
    from modularbase_core.packs.install import already, read_target

    wanted: dict[Target, None] = {}
    for text in targets:
        target = read_target(text, before)
        name = None if upgrade else already(target, before)
        if name is not None and _is_sound(name, before):
            report["already"].append(name)
        else:
            wanted[target] = None
    return list(wanted)


def _is_sound(distribution: str, catalog: Catalog) -> bool:
    from modularbase_core.packs.soundness import check_data

    try:
        for one in catalog.packs:
            if one.distribution == distribution:
                check_data(one.pack)
    except ModularBaseError:
        return False
    return True


def _find(
    wanted: list[Target], pip: Pip, where: Sources, folder: Path, upgrade: bool, report: dict[str, Any]
) -> list[Found]:
    from modularbase_core.packs.install import find, installed_version

    found: dict[str, Found] = {}
    for number, target in enumerate(wanted):
        place = folder / str(number)
        place.mkdir()
        one = find(target, pip, where, place)
        wheel = one.wheel
        if upgrade and target.names and installed_version(wheel.distribution) == wheel.version:
            report["already"].append(wheel.distribution)
            continue
        if not wheel.packs:
            report["notes"].append(f"{wheel.distribution} brings no pack, but code that other packs are run with")
        if wheel.distribution in found and found[wheel.distribution].wheel.sha256 != wheel.sha256:
            raise click.UsageError(f"{wheel.distribution} is named twice, by different wheels; name one of them")
        found[wheel.distribution] = one
    return list(found.values())


def _check(found: list[Found], before: Catalog, config: EngineConfig, force: bool, report: dict[str, Any]) -> None:
    from modularbase_core.packs.install import check_fit

    try:
        report["notes"] += check_fit([one.wheel for one in found], before, config.base)
    except PackIncompatible as error:
        if not force:
            raise PackIncompatible(f"{error}; nothing was installed (--force installs it all the same)") from error
        report["notes"].append(f"installed all the same: {error}")


def _rediscovered(found: list[Found], config: EngineConfig, before: Catalog) -> Catalog:
    """Look again at what is installed, as a fresh process would."""
    if not found:
        return before
    importlib.invalidate_caches()
    tops = {name for one in found for name in one.wheel.modules}
    for name in [name for name in sys.modules if name.split(".")[0] in tops]:
        del sys.modules[name]  # an upgraded plugin's old code
    return installed(config)[0]


def _changed(before: Catalog, after: Catalog, found: list[Found]) -> list[InstalledPack]:
    """List the packs that were installed now, those that came as a dependency too."""
    old = {one.id: one for one in before.packs}
    distributions = {one.wheel.distribution for one in found}
    return [
        one
        for one in after.packs
        if one.distribution in distributions or one.id not in old or one.version != old[one.id].version
    ]


def _describe(
    before: Catalog, after: Catalog, changed: list[InstalledPack], config: EngineConfig, report: dict[str, Any]
) -> None:
    """Note what is new, and which packs cannot run now."""
    old = {one.id: one.manifest.version for one in before.packs}
    refused = {one["id"]: one["refused"] for one in describe_packs(after, config.base)["packs"]}
    refused_before = {one["id"]: one["refused"] for one in describe_packs(before, config.base)["packs"]}
    report["changed"] = [
        {
            "id": one.id,
            "version": one.manifest.version,
            "was": old.get(one.id),
            "type": one.manifest.type,
            "size_mb": one.manifest.size_mb,
            "licence": one.manifest.licence,
            "distribution": one.distribution,
            "refused": refused[one.id],
        }
        for one in changed
    ]
    known, sources_of = {one.id for one in changed}, {one.distribution for one in changed}
    report["notes"] += [
        f"{id} cannot run any more: {told}"
        for id, told in refused.items()
        if told and id not in known and id in refused_before and not refused_before[id]
    ]
    was_broken = {(one.name, one.pack) for one in before.broken}
    report["notes"] += [
        f"{one.pack or one.name} is broken: {one.reason}"
        for one in after.broken
        if (one.name, one.pack) not in was_broken
    ]
    report["notes"] += [one.reason for one in after.shadowed if one.installed.distribution in sources_of]


def _take_over(before: Catalog, after: Catalog, config: EngineConfig, quiet: bool, report: dict[str, Any]) -> None:
    """Work out what the newcomers take from the others; where that cannot be done, say why in a line."""
    report["takeover"] = report["takeover_problem"] = None
    try:
        from modularbase_core.host.takeover import takeover

        with progress_bar(quiet=quiet) as progress:
            found = takeover(before, after, config, progress)
    except (ModularBaseError, ImportError) as error:
        report["takeover_problem"] = str(error)
    else:
        report["takeover"], report["table"] = found.to_dict(), str(found)


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [f"{name} is already installed; --upgrade looks for a newer version" for name in report["already"]]
    for one in report["changed"]:
        what = f"{one['type']}, {one['size_mb']:.1f} MB" + (f", {one['licence']}" if one["licence"] else "")
        was = f", was {one['was']}" if one["was"] else ""
        lines.append(f"installed {one['id']} {one['version']}{was} ({what}) of {one['distribution']}")
        if one["refused"]:
            lines.append(f"  cannot run yet: {one['refused']}")
    lines += [f"fetched {name}" for name in report.get("fetched", ())]
    lines += [f"note: {text}" for text in report["notes"]]
    if report.get("takeover_problem"):
        lines.append(f"what it takes over from other packs cannot be told here: {report['takeover_problem']}")
    if report.get("table"):
        lines += ["", report["table"]]
    return lines
