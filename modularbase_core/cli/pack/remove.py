"""`modularbase pack remove`: refuses what others need, asks, lets pip uninstall, and clears downloaded weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from modularbase_core.cli.pack.pin import unpin_packs
from modularbase_core.cli.pack.sources import pip_of
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import ModularBaseError, PackError

if TYPE_CHECKING:
    from modularbase_core.config import EngineConfig
    from modularbase_core.packs.catalog import Catalog, InstalledPack

CORE: Final = "modularbase"


@click.command(short_help="Uninstall packs with pip.")
@click.argument("names", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Remove a pack that others need.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@settings_options
def remove(
    names: tuple[str, ...], yes: bool, force: bool, quiet: bool, config_file: Path | None, cache_dir: Path | None
) -> None:
    """Uninstall the distributions of packs NAMES, and delete weights that no other pack uses.

    Base, router and general chat are always there and stay.
    """
    from modularbase_core.packs.catalog import weights_store

    config = read_settings(config_file, cache_dir)
    catalog, _ = installed(config)
    distributions = list(dict.fromkeys(_distribution(name, catalog) for name in names))
    going = [one for one in _every(catalog) if one.distribution in distributions]
    _check_residents(going, catalog, config)
    staying = [one for one in _every(catalog) if one not in going]
    if not force:
        _check_needed(going, staying, distributions)
    pip = pip_of(quiet)
    for name in distributions:
        ids = [one.id for one in going if one.distribution == name]
        click.echo(f"{name} goes, and with it: {', '.join(ids) or 'no pack that can be used'}", err=True)
    if not yes:
        _ask(distributions)
    pip.uninstall(distributions)
    click.echo(f"removed {', '.join(distributions)}")
    freed = _clear(going, staying, weights_store(config.cache_dir))
    if freed:
        click.echo(f"deleted {freed / 1e6:.1f} MB of downloaded weights")
    ids_left = {one.id for one in staying}
    gone = {word for one in going if one.id not in ids_left for word in (one.id, *one.manifest.aliases)}
    for word in unpin_packs([word for word in config.pins if word in gone], config_file):
        click.echo(f"unpinned {word}, which is gone")


def _every(catalog: Catalog) -> list[InstalledPack]:
    return [*catalog.packs, *(one.installed for one in catalog.shadowed)]


def _distribution(name: str, catalog: Catalog) -> str:
    """Return the distribution that brings what is called `name`: a pack, a broken one too, or the distribution."""
    from modularbase_core.packs.limits import plain

    broken = [one.distribution for one in catalog.broken if one.is_called(name) and one.distribution]
    sources = [*(one.distribution for one in _every(catalog)), *(one.distribution for one in catalog.plugins)]
    named = [source for source in sources if plain(source) == plain(name)]
    try:
        found = catalog.find(name).distribution
    except PackError:
        if not broken and not named:
            raise
        found = (broken + named)[0]
    if not found:
        raise PackError(
            f"pack {name!r} belongs to no distribution, so pip cannot remove it; remove it where it came from"
        )
    if plain(found) == CORE:
        raise PackError(f"{name!r} is part of {CORE} itself, which `pip uninstall {CORE}` removes")
    return found


def _check_residents(going: Iterable[InstalledPack], catalog: Catalog, config: EngineConfig) -> None:
    from modularbase_core.packs.resolve import GENERAL_CHAT, line_up

    residents = {one.id for one in going if one.manifest.type in ("base", "router") or one.id == GENERAL_CHAT}
    try:
        lineup = line_up(catalog, config.base)
        # with several bases, those that are not in use may go
        residents = {lineup.base.id, lineup.router.id, lineup.general_chat.id}
        sources = {one.distribution for one in (lineup.base, lineup.router, lineup.general_chat)}
    except ModularBaseError:
        sources = {one.distribution for one in going if one.id in residents}
    for one in going:
        if one.id in residents and one.distribution in sources:
            raise PackError(
                f"pack {one.id!r} of {one.distribution} is always loaded (base, router and general chat are), so it "
                "stays; `pip uninstall` takes it out where nothing is to run any more"
            )


def _check_needed(going: list[InstalledPack], staying: list[InstalledPack], distributions: list[str]) -> None:
    """Raise PackError when a pack or a distribution that stays needs one that goes."""
    from importlib_metadata import distributions as every_distribution
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    left = {one.id for one in staying}
    leaving = {one.id for one in going} - left
    needed = {
        one.id: [item.id for item in one.manifest.dependencies if item.id in leaving]
        for one in staying
        if any(item.id in leaving for item in one.manifest.dependencies)
    }
    if needed:
        told = ", ".join(f"{id} needs {' and '.join(ids)}" for id, ids in needed.items())
        raise PackError(f"other packs need what would go ({told}); remove those too, or give --force")
    names = {canonicalize_name(name) for name in distributions}
    for other in every_distribution():
        if not other.name or canonicalize_name(other.name) in names:
            continue
        for text in other.requires or ():
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) in names and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ):
                raise PackError(f"{other.name} needs {requirement.name}; remove it too, or give --force")


def _ask(distributions: list[str]) -> None:
    if not (sys.stdin and sys.stdin.isatty()):
        raise PackError("nobody is there to be asked; give --yes to remove without a question")
    click.confirm(f"Remove {', '.join(distributions)}?", abort=True, err=True)


def _clear(going: list[InstalledPack], staying: list[InstalledPack], store: Path) -> int:
    """Delete the downloaded weights of packs that went, unless another uses them; return the bytes freed."""
    used = {one.manifest.files[name] for one in staying for name in one.manifest.downloads}
    freed = 0
    for digest in {one.manifest.files[name] for one in going for name in one.manifest.downloads} - used:
        for path in (store / digest, store / f"{digest}.part", store / f"{digest}.validator"):
            if path.is_file():
                freed += path.stat().st_size
                path.unlink()
    return freed
