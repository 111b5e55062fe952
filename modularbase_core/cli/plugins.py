"""What can be told of plugins: how long each takes to load, what of it is never called, which packs are not used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from modularbase_core.packs.catalog import BrokenPlugin, Catalog, LoadedPlugin

SLOW_MILLISECONDS: Final = 50
"""A plugin that takes longer to load is named: every command waits for it."""


# Any: plain JSON values
def describe_plugins(catalog: Catalog) -> list[dict[str, Any]]:
    """Describe every plugin that was loaded, and those that could not be, with the time that each took."""
    told: list[LoadedPlugin | BrokenPlugin] = [*catalog.plugins, *(one for one in catalog.broken if not one.pack)]
    return [
        {
            "name": one.name,
            "distribution": one.distribution,
            "milliseconds": round(one.seconds * 1000, 1),
            "faults": list(getattr(one, "faults", ())),
            "broken": getattr(one, "reason", None),
        }
        for one in sorted(told, key=lambda one: (one.distribution, one.name))
    ]


def plugin_notes(catalog: Catalog) -> list[str]:
    """Tell what is amiss with plugins, a sentence each."""
    notes = [f"{one.name} of {one.distribution} is broken: {one.reason}" for one in catalog.broken]
    for plugin in describe_plugins(catalog):
        who = f"{plugin['name']} of {plugin['distribution']}"
        notes += [f"{who}: {fault}" for fault in plugin["faults"]]
        if plugin["milliseconds"] > SLOW_MILLISECONDS:
            notes.append(
                f"{who} takes {plugin['milliseconds']:.0f} ms to load, and every command waits for it; "
                "let it import what it needs when it needs it"
            )
    for other in catalog.shadowed:
        one = other.installed
        notes.append(f"{one.id} {one.manifest.version} of {one.distribution} is not the one listed: {other.reason}")
    return notes
