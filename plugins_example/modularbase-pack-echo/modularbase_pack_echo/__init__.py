"""Every hook of ModularBase, each doing something small: a plugin to read and to copy from."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modularbase_core.sdk import Pack, hookimpl
from modularbase_core.sdk.events import PackEvicted, PackLoaded, TurnFinished
from modularbase_core.sdk.fusion import Fusion

KEPT = 1000
"""Lines that are remembered; older ones are forgotten, so that a long conversation costs no memory."""


class Echo:
    """The plugin. heard: what its hooks were called with, a line each; `modularbase echo` shows it."""

    def __init__(self) -> None:
        self.heard: deque[str] = deque(maxlen=KEPT)

    @hookimpl
    def modularbase_packs(self) -> list[Pack]:
        """Offer no pack: a plugin may be code alone."""
        return []

    @hookimpl
    def modularbase_scores(self, message: str, scores: Mapping[str, float]) -> dict[str, float]:
        """Let a pack answer when the message says its id."""
        named = {pack: 1.0 for pack in re.findall(r"\w+", message) if pack in scores}
        self.heard.append(f"scores: {', '.join(named) or 'no pack'} named")
        return named

    @hookimpl
    def modularbase_route(self, message: str, packs: Sequence[str]) -> list[str] | None:
        """Take `echo:general_chat,python_code how are you` as an order."""
        if not message.startswith("echo:"):
            return None
        wanted = message.removeprefix("echo:").split(maxsplit=1)[:1]
        chosen = [pack for pack in "".join(wanted).split(",") if pack in packs]
        self.heard.append(f"route: {', '.join(chosen) or 'left to others'}")
        return chosen or None

    @hookimpl
    def modularbase_fusions(self) -> list[Fusion]:
        """Offer `fusion = "equal"` for the settings."""
        return [Fusion("equal", equal)]

    @hookimpl
    def modularbase_fallback(self, pack_id: str, candidates: Sequence[str]) -> list[str] | None:
        """Let a pack of the same first word stand in, as python_web for python_code."""
        related = [one for one in candidates if one.split("_")[0] == pack_id.split("_")[0]]
        self.heard.append(f"fallback: {', '.join(related) or 'left to others'} for {pack_id}")
        return related or None

    @hookimpl
    def modularbase_importance(self, role: str, text: str) -> float | None:
        """Keep what the user asks to be remembered."""
        return 1.0 if role == "user" and "remember" in text.lower() else None

    @hookimpl
    def modularbase_cold_stores(self) -> dict[str, Callable[..., Any]]:
        """Offer `cold_store = "echo"`: our own store, each opening of which is remembered."""
        from modularbase_core.context.cold import ColdStore

        def opened(directory: Path, **keywords: Any) -> ColdStore:
            self.heard.append(f"cold store: {directory.name}")
            return ColdStore.open(directory, **keywords)

        return {"echo": opened}

    @hookimpl
    def modularbase_pack_loaded(self, event: PackLoaded) -> None:
        """Remember which pack came, and how long it took."""
        early = ", before it was asked for" if event.prefetched else ""
        self.heard.append(f"loaded: {event.pack_id}, {event.size_bytes} bytes in {event.seconds:.3f} s{early}")

    @hookimpl
    def modularbase_pack_evicted(self, event: PackEvicted) -> None:
        """Remember which pack went."""
        self.heard.append(f"evicted: {event.pack_id}, for {event.successor}")

    @hookimpl
    def modularbase_turn_finished(self, event: TurnFinished) -> None:
        """Remember who answered."""
        shares = ", ".join(f"{pack} {share:.0%}" for pack, share in event.packs.items())
        self.heard.append(f"finished ({event.reason}): {event.generated_tokens} tokens by {shares}")

    @hookimpl
    def modularbase_targets(self) -> dict[str, Mapping[str, Any]]:
        """Offer `modularbase compile --target cpu-portable`: no newer instructions than 64-bit processors of 2009."""
        from modularbase_core.device.target import cpu_target

        here = cpu_target()
        level = "x86-64-v2" if here.machine == "x86_64" else "generic"
        return {"cpu-portable": replace(here, level=level, features=()).to_dict()}


# Any: numpy arrays; see modularbase_core.sdk.fusion.Fusion
def equal(weights: Any, gram: Any) -> Any:
    """Give every pack the same share, whatever it was routed with."""
    return weights * 0 + 1 / len(weights)


plugin = Echo()
"""What the entry point names; an object has a memory that a module should not have."""
