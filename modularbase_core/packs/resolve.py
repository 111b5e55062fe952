"""Which installed packs go together: one base, its router, its general chat, and what was made for that base.

Of several versions of a pack the newest that fits the base is used. Whether each has what it needs, `needs` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from modularbase_core.errors import PackError, PackIncompatible
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.inventory import Inventory
from modularbase_core.packs.needs import settle
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture, RouterArchitecture
from modularbase_core.sdk.manifest import Manifest

GENERAL_CHAT: Final = "general_chat"


@dataclass(frozen=True, slots=True)
class Lineup:
    """The packs of a running model. `routable` holds general chat and every pack that may join a turn.

    refused: why an installed pack is not among them, by id. notes: what there is to know of some that are, by id: that
    an older version is used than is installed, or that it keeps another pack out.
    """

    base: InstalledPack
    router: InstalledPack
    general_chat: InstalledPack
    routable: tuple[InstalledPack, ...]
    refused: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)

    def without(self, fallen: Mapping[str, str]) -> Lineup:
        """Return the line-up without some packs, by id with a sentence why, and without those that need them.

        Raises PackError when the base, the router or general chat would fall.
        """
        if not fallen:
            return self
        present = {one.id: one.manifest for one in (self.base, self.router, *self.routable)}
        unfit = {one: f"cannot be used: {reason}" for one, reason in fallen.items()}
        refused = {**settle(present, unfit, Inventory(Catalog())).refused, **fallen}
        for one in (self.base, self.router, self.general_chat):
            if one.id in refused:
                raise PackError(refused[one.id])
        return replace(
            self,
            routable=tuple(one for one in self.routable if one.id not in refused),
            refused={**self.refused, **refused},
            notes={one: note for one, note in self.notes.items() if one not in refused},
        )


def line_up(catalog: Catalog, base_id: str | None = None) -> Lineup:
    """Choose the packs that run together on the base `base_id`, or on the only one installed.

    Raises PackError when no base, router or general chat is there or one of them cannot run, or when there are several
    bases and none was named.
    """
    base = choose_base(catalog, base_id)
    check_fetched(base)
    inventory = Inventory(catalog, base.id)
    used, unfit, notes = _versions(inventory, base)
    settled = settle({one.id: one.manifest for one in (base, *used.values())}, unfit, inventory)
    if base.id in settled.refused:
        raise PackError(settled.refused[base.id])
    for one, note in settled.notes.items():
        notes[one] = f"{notes[one]}; {note}" if one in notes else note
    residents = _Residents(catalog, base, inventory, settled.refused)
    fitting = [one for one in used.values() if one.id not in settled.refused]
    return Lineup(
        base,
        residents.router(fitting),
        residents.general_chat(fitting),
        tuple(one for one in fitting if one.manifest.type != "router"),
        settled.refused,
        {one: note for one, note in notes.items() if one not in settled.refused},
    )


def choose_base(catalog: Catalog, base_id: str | None = None) -> InstalledPack:
    """Return the base called `base_id`, or the only one installed; raises PackError."""
    if base_id is not None:
        one = catalog.find(base_id)
        if one.manifest.type != "base":
            raise PackError(f"pack {base_id!r} is a {one.manifest.type} pack, not a base; choose another")
        return one
    bases = catalog.of_type("base")
    if not bases and catalog.limits:
        raise PackError(f"no base is loaded: {catalog.limits}")
    if not bases:
        reasons = "; ".join(f"{broken.name} is broken: {broken.reason}" for broken in catalog.broken)
        raise PackError(f"no base is installed; run `pip install modularbase-nano`{reasons and f' ({reasons})'}")
    if len(bases) > 1:
        ids = ", ".join(one.id for one in bases)
        raise PackError(f"several bases are installed ({ids}); name one as `base` in the settings")
    return bases[0]


def check_compatible(pack: Manifest, base: Manifest) -> None:
    """Raise PackIncompatible when `pack` was made for another base, or another version of it."""
    if fault := _misfit(pack, base):
        raise PackIncompatible(f"pack {pack.id!r} {fault}")


def check_fetched(pack: InstalledPack) -> None:
    """Raise PackError when files of `pack` are yet to be downloaded."""
    if fault := _unfetched(pack):
        raise PackError(f"pack {pack.id!r} {fault}")


def _misfit(pack: Manifest, base: Manifest) -> str:
    """Say why `pack` cannot run on `base`, to follow its name; empty where it can."""
    if pack.architecture is None:
        return "describes no network, so it cannot run; add its architecture to its manifest"
    if pack.base not in (None, base.id):
        return f"was made for base {pack.base!r}, not {base.id!r}; install {pack.base} or another pack"
    if not pack.admits_base(base.version):
        return (
            f"was made for {base.id} {' or '.join(pack.base_compatibility)}, but {base.version} is installed; "
            "upgrade the pack or the base"
        )
    assert isinstance(base.network, BaseArchitecture)
    assert isinstance(pack.architecture, (PackArchitecture, RouterArchitecture))
    if isinstance(pack.architecture, PackArchitecture) and pack.architecture.window != base.network.window:
        return (
            f"sees another window than {base.id} ({pack.architecture.window.trained_tokens} against "
            f"{base.network.window.trained_tokens} tokens, or other blocks); train it with the base's window"
        )
    wanted, given = pack.architecture.base_hidden_size, base.network.blocks.hidden_size
    if wanted != given:
        return f"takes hidden states {wanted} wide, but {base.id} gives {given}; install the base that it was made for"
    tokens = base.network.vocabulary_size
    own = pack.architecture.vocabulary_size if isinstance(pack.architecture, PackArchitecture) else 0
    if own not in (0, tokens):
        return f"adds to the logits of {own} tokens, but {base.id} has {tokens}; install the base that it was made for"
    return ""


def _unfetched(pack: InstalledPack) -> str:
    if not pack.absent:
        return ""
    return f"lacks {' and '.join(pack.absent)}, yet to be downloaded; run `modularbase pack fetch {pack.id}`"


def _versions(
    inventory: Inventory, base: InstalledPack
) -> tuple[dict[str, InstalledPack], dict[str, str], dict[str, str]]:
    """Choose of each pack the newest version that fits; return those, what is wrong with the others, and notes."""
    used: dict[str, InstalledPack] = {}
    unfit: dict[str, str] = {}
    notes: dict[str, str] = {}
    for pack_id, versions in inventory.versions.items():
        newest = versions[0]
        if newest.manifest.type == "base" or pack_id == base.id:
            continue
        faults: dict[bool, str] = {}  # of the newest version that is meant for this base, and of another
        for one in (one for one in versions if one.manifest.type != "base"):
            fault = _misfit(one.manifest, base.manifest) or _unfetched(one)
            if not fault:
                used[pack_id] = one
                break
            faults.setdefault(_is_meant(one, base), fault)
        if pack_id not in used:
            unfit[pack_id] = faults.get(True) or faults[False]
        elif used[pack_id] is not newest:
            fault = faults[_is_meant(newest, base)].partition(";")[0]
            notes[pack_id] = f"{pack_id} {_source(used[pack_id])} is used instead of {_source(newest)}, which {fault}"
    return used, unfit, notes


def _is_meant(one: InstalledPack, base: InstalledPack) -> bool:
    return one.manifest.base in (None, base.id)


def _source(one: InstalledPack) -> str:
    return f"{one.manifest.version}{one.distribution and f' of {one.distribution}'}"


@dataclass(frozen=True, slots=True)
class _Residents:
    """Finds the two packs without which nothing runs, or says why they are not there."""

    catalog: Catalog
    base: InstalledPack
    inventory: Inventory
    refused: Mapping[str, str]

    def router(self, fitting: list[InstalledPack]) -> InstalledPack:
        found = [one for one in fitting if one.manifest.type == "router"]
        return self._only("router", found, self._fallen("router"))

    def general_chat(self, fitting: list[InstalledPack]) -> InstalledPack:
        """Return the pack of that id, or else the only other system pack; none stands in for one that is broken."""
        system = {one.id: one for one in fitting if one.manifest.type == "system"}
        fallen = self._fallen("system")
        if GENERAL_CHAT in system:
            return system[GENERAL_CHAT]
        own = [one for one in fallen if one.id == GENERAL_CHAT and _is_meant(one, self.base)]
        found = [] if own or self._broken(GENERAL_CHAT) else list(system.values())
        return self._only("general chat", found, own or fallen)

    def _only(self, what: str, found: list[InstalledPack], fallen: list[InstalledPack]) -> InstalledPack:
        base = self.base
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(one.id for one in found)
            raise PackError(f"several {what} packs for base {base.id!r} are installed ({ids}); uninstall all but one")
        if meant := [one for one in fallen if _is_meant(one, self.base)]:
            reasons = "; ".join(self.refused[one.id] for one in meant)
            raise PackError(f"no {what} can run on base {base.id!r}: {reasons}")
        told = [f"{one.id} is for base {one.manifest.base!r}" for one in fallen] + self._broken()
        again = self.catalog.limits or f"install {base.distribution or base.id} again"
        detail = f" ({'; '.join(told)})" if told else ""
        raise PackError(f"no {what} pack for base {base.id!r} is installed{detail}; {again}")

    def _fallen(self, type: str) -> list[InstalledPack]:
        """List the refused packs of a type, each by its newest version that is meant for this base, if any is."""
        fallen = []
        for pack_id, versions in self.inventory.versions.items():
            of_type = [one for one in versions if one.manifest.type == type]
            if of_type and pack_id in self.refused:
                fallen.append(next((one for one in of_type if _is_meant(one, self.base)), of_type[0]))
        return fallen

    def _broken(self, pack_id: str = "") -> list[str]:
        """Say what is broken of that which brought the base, or of that only the pack of this id."""
        return [
            f"{one.pack or one.name} is broken: {one.reason}"
            for one in self.catalog.broken
            if one.distribution == self.base.distribution and (not pack_id or (one.pack and one.is_called(pack_id)))
        ]
