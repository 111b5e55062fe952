"""Which installed entry points may be loaded: all of them, or those that the user named.

Reads names alone and imports nothing heavy: the command line asks here before it loads a plugin's command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from importlib_metadata import EntryPoint

from modularbase_core.errors import ConfigError, nearest


def distribution_of(entry: EntryPoint) -> str:
    """Return the name of the distribution that brings `entry`, empty where there is none."""
    return entry.dist.name if entry.dist else ""


def plain(name: str) -> str:
    """Return `name` as pip compares it: in lower case, - and _ and . alike."""
    return name.replace("-", "_").replace(".", "_").lower()


def admitted(entries: Iterable[EntryPoint], only: Sequence[str] | None) -> list[EntryPoint]:
    """Return the entry points that `only` names by themselves or by their distribution; all when it is None.

    Raises ConfigError, naming the nearest, on a word that names none.
    """
    found = list(entries)
    if only is None:
        return found
    names = {plain(name): name for entry in found for name in (distribution_of(entry), entry.name) if name}
    for word in only:
        if plain(word) not in names:
            raise ConfigError(
                f"plugins are limited to {word!r}, but no such plugin is installed"
                f"{nearest(plain(word), names)}; `modularbase doctor` lists those that are"
            )
    words = {plain(word) for word in only}
    return [entry for entry in found if words & {plain(entry.name), plain(distribution_of(entry))}]
