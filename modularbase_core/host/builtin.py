"""What ModularBase does by itself at its own hooks: fallback, importance, fusions, cold stores, targets.

A plugin is asked before; what it leaves open is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pluggy

from modularbase_core.context.cold import ColdStore
from modularbase_core.device.target import cpu_target, cuda_target
from modularbase_core.packs.catalog import Catalog, plugin_manager
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.resolve import GENERAL_CHAT
from modularbase_core.sdk.fusion import Fusion
from modularbase_core.sdk.markers import hookimpl
from modularbase_core.turn.fusions import BUILTIN

NAME: Final = "modularbase_core"
"""The name that our own plugin is registered under."""
RECENCY: Final = 0.75
"""What a turn keeps of its importance with each turn that follows it."""
FACTS: Final = 0.25
"""What facts in a user's message add: it outlives one without them that is up to some five turns younger."""

_FACT: Final = re.compile(
    r"\d"  # a number
    r"|[\w.~-]*[/\\][\w.-]+"  # a path or an address
    r"|\b\w+[_.]\w+\b"  # a file, or a name in code
    r"|(?<=[\w,] )[A-Z]\w*[a-z]"  # a name: a capital letter within a sentence
    r"""|["“「『《`][^"”」』》`]+["”」』》`]"""  # whatever is quoted
)


class Builtin:
    """Our own plugin, registered like any other and asked last."""

    def __init__(self, catalog: Catalog) -> None:
        self._manifests = {one.id: one.manifest for one in catalog.packs}

    @hookimpl(trylast=True)
    def modularbase_fallback(self, pack_id: str, candidates: Sequence[str]) -> Sequence[str] | None:
        """Name those whom the pack's manifest names, or else general chat."""
        manifest = self._manifests.get(pack_id)
        named = [one for one in (manifest.fallback if manifest else ()) if one in candidates]
        return named or [one for one in candidates if one == GENERAL_CHAT] or None

    @hookimpl(trylast=True)
    def modularbase_importance(self, role: str, text: str, age: int) -> float:
        """Keep the system message, then what is recent, and facts that the user gave for longer."""
        if role == "system":
            return 1.0
        recent = (1.0 - FACTS) * RECENCY**age
        return recent + FACTS if role == "user" and _FACT.search(text) else recent

    @hookimpl(trylast=True)
    def modularbase_fusions(self) -> Sequence[Fusion]:
        """Offer mean, attention and primary."""
        return BUILTIN

    @hookimpl(trylast=True)
    def modularbase_cold_stores(self) -> Mapping[str, Callable[..., ColdStore]]:
        """Offer LMDB."""
        return {"lmdb": ColdStore.open}

    # Any: plain JSON values
    @hookimpl(trylast=True)
    def modularbase_targets(self) -> Mapping[str, Mapping[str, Any]]:
        """Offer this machine's processor and the GPUs that we know."""
        return {"cpu": cpu_target().to_dict(), "cuda": cuda_target().to_dict()}


def hooks_of(catalog: Catalog, manager: pluggy.PluginManager | None = None) -> Hooks:
    """Return the hooks of the plugins that `manager` holds, with our own registered among them."""
    manager = plugin_manager() if manager is None else manager
    if manager.has_plugin(NAME):
        manager.unregister(name=NAME)
    manager.register(Builtin(catalog), NAME)
    return Hooks(manager)
