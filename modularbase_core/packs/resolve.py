"""Which installed packs go together: one base, its router, its general chat, and what was made for that base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from packaging.specifiers import SpecifierSet

from modularbase_core.errors import PackError, PackIncompatible
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture, RouterArchitecture
from modularbase_core.sdk.manifest import Manifest

GENERAL_CHAT: Final = "general_chat"


@dataclass(frozen=True, slots=True)
class Lineup:
    """The packs of a running model. `routable` holds general chat and every pack that may join a turn.

    refused: why an installed pack is not among them, by id.
    """

    base: InstalledPack
    router: InstalledPack
    general_chat: InstalledPack
    routable: tuple[InstalledPack, ...]
    refused: dict[str, str]


def line_up(catalog: Catalog, base_id: str | None = None) -> Lineup:
    """Choose the packs that run together on the base `base_id`, or on the only one installed.

    Raises PackError when no base, router or general chat is there, or several bases and none was named.
    """
    base = choose_base(catalog, base_id)
    check_fetched(base)
    fitting, refused = _fitting(catalog, base)
    router = _resident([one for one in fitting if one.manifest.type == "router"], "router", base)
    system = [one for one in fitting if one.manifest.type == "system"]
    chat = _resident([one for one in system if one.id == GENERAL_CHAT] or system, "general chat", base)
    return Lineup(base, router, chat, tuple(one for one in fitting if one.manifest.type != "router"), refused)


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
    if pack.architecture is None:
        raise PackIncompatible(
            f"pack {pack.id!r} describes no network, so it cannot run; add its architecture to its manifest"
        )
    if pack.base not in (None, base.id):
        raise PackIncompatible(
            f"pack {pack.id!r} was made for base {pack.base!r}, not {base.id!r}; install {pack.base} or another pack"
        )
    if not pack.admits_base(base.version):
        raise PackIncompatible(
            f"pack {pack.id!r} was made for {base.id} {' or '.join(pack.base_compatibility)}, "
            f"but {base.version} is installed; upgrade the pack or the base"
        )
    assert isinstance(base.network, BaseArchitecture)
    assert isinstance(pack.architecture, (PackArchitecture, RouterArchitecture))
    if isinstance(pack.architecture, PackArchitecture) and pack.architecture.window != base.network.window:
        raise PackIncompatible(
            f"pack {pack.id!r} sees another window than {base.id} ({pack.architecture.window.trained_tokens} against "
            f"{base.network.window.trained_tokens} tokens, or other blocks); train it with the base's window"
        )
    wanted, given = pack.architecture.base_hidden_size, base.network.blocks.hidden_size
    if wanted != given:
        raise PackIncompatible(
            f"pack {pack.id!r} takes hidden states {wanted} wide, but {base.id} gives {given}; "
            "install the base that it was made for"
        )


def check_fetched(pack: InstalledPack) -> None:
    """Raise PackError when files of `pack` are yet to be downloaded."""
    if pack.absent:
        raise PackError(
            f"{' and '.join(pack.absent)} of pack {pack.id!r} are yet to be downloaded; "
            f"run `modularbase pack fetch {pack.id}`"
        )


def check_dependencies(pack: Manifest, installed: Mapping[str, Manifest]) -> None:
    """Raise PackError when a pack that `pack` needs is not among the `installed`, or not in that version."""
    for needed in pack.dependencies:
        if needed.id not in installed:
            raise PackError(
                f"pack {pack.id!r} needs the pack {needed.id!r}, which is not there or unusable; install it"
            )
        version = installed[needed.id].version
        if not SpecifierSet(needed.version).contains(version, prereleases=True):
            raise PackError(
                f"pack {pack.id!r} needs {needed.id} {needed.version}, but {version} is installed; upgrade one of them"
            )


def _fitting(catalog: Catalog, base: InstalledPack) -> tuple[list[InstalledPack], dict[str, str]]:
    fitting, refused = [], {}
    for one in catalog.of_type("router", "system", "domain"):
        try:
            check_fetched(one)
            check_compatible(one.manifest, base.manifest)
            fitting.append(one)
        except PackError as error:
            refused[one.id] = str(error)
    # a pack that falls away may take along those that need it
    while True:
        before, present = len(refused), {one.id: one.manifest for one in fitting}
        for one in list(fitting):
            try:
                check_dependencies(one.manifest, present)
            except PackError as error:
                refused[one.id] = str(error)
                fitting.remove(one)
        if len(refused) == before:
            return fitting, refused


def _resident(candidates: list[InstalledPack], what: str, base: InstalledPack) -> InstalledPack:
    if not candidates:
        raise PackError(f"no {what} pack for base {base.id!r} is installed; install {base.distribution} again")
    if len(candidates) > 1:
        ids = ", ".join(one.id for one in candidates)
        raise PackError(f"several {what} packs for base {base.id!r} are installed ({ids}); uninstall all but one")
    return candidates[0]
