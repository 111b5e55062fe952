"""`modularbase compile`: build ahead what the first chat would build, or what another machine will run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modularbase_core.cli.progress import progress_bar
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import read_settings, settings_options
from modularbase_core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from modularbase_core.device.target import Target
    from modularbase_core.packs.catalog import InstalledPack


@click.command(name="compile")
@click.argument("packs", nargs=-1)
@click.option(
    "--target", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where it will run."
)
@click.option("--arch", "architectures", help="GPU architectures, by commas, such as sm_86,sm_90 [default: all known].")
@click.option("--quiet", is_flag=True, help="Draw no progress bar.")
@json_option
@settings_options
def compile_packs(
    packs: tuple[str, ...],
    target: str,
    architectures: str | None,
    quiet: bool,
    as_json: bool,
    config_file: Path | None,
    cache_dir: Path | None,
) -> None:
    """Compile the architectures of PACKS (by default: of all installed) into the cache.

    Packs of one architecture share an artefact. A CUDA artefact needs no GPU to be built.
    """
    config = read_settings(config_file, cache_dir)
    machine = _target(target, architectures)
    chosen = _chosen(packs, config.base)
    with progress_bar(quiet=quiet) as progress:
        report = _build(chosen, machine, config.cache_dir, progress)
    if as_json:
        print_json(report)
        return
    for artefact in report:
        click.echo(f"{', '.join(artefact['packs'])}: {artefact['directory']}")


def _target(name: str, architectures: str | None) -> Target:
    from modularbase_core.device.target import CUDA_ARCHITECTURES, cpu_target, cuda_target

    if name == "cpu":
        if architectures:
            raise ConfigError("--arch is for --target cuda; the processor's features are detected")
        return cpu_target()
    wanted = tuple(architectures.split(",")) if architectures else CUDA_ARCHITECTURES
    for one in wanted:
        if one not in CUDA_ARCHITECTURES:
            known = ", ".join(CUDA_ARCHITECTURES)
            raise ConfigError(f"--arch names {one!r}; use some of {known}{nearest(one, CUDA_ARCHITECTURES)}")
    return cuda_target(wanted)


def _chosen(words: tuple[str, ...], base_id: str | None) -> list[InstalledPack]:
    from modularbase_core.packs.catalog import discover
    from modularbase_core.packs.resolve import line_up

    catalog = discover()
    if words:
        return [catalog.find(word) for word in words]
    lineup = line_up(catalog, base_id)
    return [lineup.base, lineup.router, *lineup.routable]


# Any: plain JSON values
def _build(
    chosen: list[InstalledPack], machine: Target, cache_dir: Path, progress: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    from modularbase_core.device.artefact import Build, ensure_artefacts
    from modularbase_core.sdk.architecture import architecture_key

    packs: dict[str, list[str]] = {}
    builds: dict[str, Build] = {}
    for one in chosen:
        architecture = one.manifest.network
        key = architecture_key(architecture)
        packs.setdefault(key, []).append(one.id)
        builds[key] = Build(architecture=architecture, target=machine, dtype=machine.dtype)
    directories = ensure_artefacts(list(builds.values()), cache_dir, progress)
    return [
        {"packs": ids, "directory": str(directory), "target": machine.to_dict(), "dtype": machine.dtype}
        for ids, directory in zip(packs.values(), directories, strict=True)
    ]
