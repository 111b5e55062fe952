"""`modularbase pack pin` and `unpin`: packs that keep their slot, written into the settings file, comments kept."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from modularbase_core.cli.settings import installed, read_settings, settings_file, settings_options
from modularbase_core.config import EngineConfig
from modularbase_core.errors import ConfigError, PackError, nearest
from modularbase_core.sdk.files import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@click.command(short_help="Keep packs in their slots.")
@click.argument("names", nargs=-1, required=True)
@settings_options
def pin(names: tuple[str, ...], config_file: Path | None, cache_dir: Path | None) -> None:
    """Keep packs NAMES loaded from the start on: they are never moved out of their slots."""
    from modularbase_core.packs.resolve import line_up

    config = read_settings(config_file, cache_dir)
    catalog, _ = installed(config)
    lineup = line_up(catalog, config.base)
    pinned = {catalog.find(word).id for word in config.pins if _is_there(word, catalog.find)}
    new: list[str] = []
    for name in names:
        one = catalog.find(name)
        if one.manifest.type not in ("domain", "system") or one.id == lineup.general_chat.id:
            raise PackError(f"pack {one.id!r} is always loaded; there is nothing to pin")
        if one.id in lineup.refused:
            raise PackError(f"pack {one.id!r} cannot be pinned, as it cannot run: {lineup.refused[one.id]}")
        if one.id in pinned or one.id in new:
            click.echo(f"{one.id} is pinned already")
        else:
            new.append(one.id)
    if new and len(pinned) + len(new) >= config.slots:
        raise PackError(
            f"{', '.join(new)} cannot be pinned: of {config.slots} slots one must stay free for other packs and "
            f"{len(pinned)} are pinned already; unpin a pack or raise slots"
        )
    if new:
        path = _edit([*config.pins, *new], config_file)
        click.echo(f"pinned {', '.join(new)} in {path}")


@click.command(short_help="Let packs leave their slots again.")
@click.argument("names", nargs=-1, required=True)
@settings_options
def unpin(names: tuple[str, ...], config_file: Path | None, cache_dir: Path | None) -> None:
    """Let packs NAMES leave their slots again when others need them."""
    config = read_settings(config_file, cache_dir)
    catalog, _ = installed(config)
    going = []
    for name in names:
        # the settings may say an alias, and the pack may be gone
        words = {name}
        if _is_there(name, catalog.find):
            one = catalog.find(name)
            words = {one.id, *one.manifest.aliases}
        found = [word for word in config.pins if word in words]
        if not found:
            raise PackError(
                f"pack {name!r} is not pinned{nearest(name, config.pins)}; `pins` in the settings lists them"
            )
        going += found
    for word in unpin_packs(going, config_file):
        click.echo(f"unpinned {word}")


# Any: Catalog.find, which need not be imported for its type
def _is_there(word: str, find: Any) -> bool:
    try:
        find(word)
    except PackError:
        return False
    return True


def unpin_packs(words: Iterable[str], config_file: Path | None) -> list[str]:
    """Take these words out of `pins` in the settings file; return those that were there."""
    words = set(words)
    pins = read_settings(config_file, None).pins if words else ()
    going = [word for word in pins if word in words]
    if going:
        _edit([word for word in pins if word not in words], config_file)
    return going


def _edit(pins: list[str], config_file: Path | None) -> Path:
    """Write `pins` into the settings file and nothing else; raises ConfigError, the file as it was."""
    import tomlkit

    # a link to a file elsewhere stays one
    path = settings_file(config_file).resolve()
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        document = tomlkit.parse(text)
        document["pins"] = pins
        changed = tomlkit.dumps(document)
        EngineConfig.from_dict(tomllib.loads(changed))
        mode = path.stat().st_mode if path.exists() else None
        write_atomically(path, [changed.encode()])
        if mode is not None:
            path.chmod(mode)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); name another with --config") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be changed ({error}); set `pins` in it by hand") from error
    return path
