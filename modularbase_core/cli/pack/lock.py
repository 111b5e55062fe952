"""`modularbase pack lock` and `restore`: write down exactly what is installed, and get there again with pip."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from modularbase_core.cli.pack.sources import fetch_weights, pip_of, source_options, sources
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import PackError

if TYPE_CHECKING:
    from modularbase_core.packs.lockfile import Locked
    from modularbase_core.packs.pip import Pip, Sources

LOCK_FILE: Final = Path("modularbase-packs.lock")


@click.command(short_help="Write down exactly which packs are installed.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=LOCK_FILE,
    show_default=True,
    help="Where to write it.",
)
@settings_options
def lock(output: Path, config_file: Path | None, cache_dir: Path | None) -> None:
    """Write down every installed pack: distribution, version and the SHA-256 of each file."""
    from modularbase_core.packs import lockfile

    catalog, _ = installed(read_settings(config_file, cache_dir))
    for one in catalog.broken:
        raise PackError(f"{one.pack or one.name} is broken, so it cannot be locked: {one.reason}")
    locked = lockfile.lock(catalog)
    if not locked:
        raise PackError("no pack is installed, so there is nothing to lock; install one")
    lockfile.write_lock(output, locked)
    packs = sum(len(one.packs) for one in locked)
    click.echo(f"locked {packs} packs of {len(locked)} distributions in {output}")


@click.command(short_help="Install exactly what a lock says.")
@click.argument("file", type=click.Path(path_type=Path), default=LOCK_FILE)
@click.option("--quiet", is_flag=True, help="Show no progress.")
@source_options
@json_option
@settings_options
@click.pass_context
# Any: pip's options, by name
def restore(
    ctx: click.Context,
    /,
    file: Path,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
    **options: Any,
) -> None:
    """Install exactly what the lock FILE says, fetch weights, and compare every file; fails on a difference."""
    from modularbase_core.packs import lockfile
    from modularbase_core.packs.catalog import weights_store

    config = read_settings(config_file, cache_dir)
    wanted = lockfile.read_lock(file)
    where = sources(options["index_url"], options["extra_index_url"], options["find_links"], options["pre"])
    catalog, _ = installed(config)
    differing = lockfile.differences(wanted, lockfile.lock(catalog))
    changing = [one for one in wanted if one.name in differing]
    if changing:
        _install(changing, pip_of(quiet), where)
        importlib.invalidate_caches()
        for name in {entry for one in catalog.packs if (entry := _module_of(one.pack.directory))}:
            sys.modules.pop(name, None)
        catalog, _ = installed(config)
    _, faults = fetch_weights(catalog.packs, weights_store(config.cache_dir), quiet=quiet)
    left = [line for lines in lockfile.differences(wanted, lockfile.lock(catalog)).values() for line in lines]
    if as_json:
        print_json({"installed": [one.requirement for one in changing], "differences": left, "faults": faults})
    else:
        for one in changing:
            click.echo(f"installed {one.name} {one.version}")
        click.echo("\n".join(f"differs: {line}" for line in left) or f"everything is as {file} says")
    for fault in faults:
        click.echo(f"error: {fault}", err=True)
    if left or faults:
        ctx.exit(1)


def _install(changing: list[Locked], pip: Pip, where: Sources) -> None:
    """Install these distributions with what they need; those that only differ in a file are installed again."""
    from modularbase_core.packs.install import installed_version

    again = [one.requirement for one in changing if installed_version(one.name) == one.version]
    pip.install([one.requirement for one in changing], where)
    if again:
        pip.install(again, where, "--no-deps", "--force-reinstall")


def _module_of(directory: Path) -> str | None:
    """Return the top-level module that holds a pack's data, if it is imported."""
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if "." not in name and place and Path(place).parent in directory.parents:
            return name
    return None
