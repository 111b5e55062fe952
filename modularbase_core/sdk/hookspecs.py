"""The hooks that ModularBase calls; a plugin implements them with `markers.hookimpl`.

What ModularBase does by itself is written as implementations of the same hooks (`host.builtin`). No hook runs
inside the token loop, but for a fusion that was asked for by name. docs/hooks.md has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

from modularbase_core.sdk.events import PackEvicted, PackLoaded, TurnFinished
from modularbase_core.sdk.fusion import Fusion
from modularbase_core.sdk.markers import PROJECT
from modularbase_core.sdk.pack import Pack

_hookspec = pluggy.HookspecMarker(PROJECT)


# a specification is a signature and its docstring: pluggy never runs it
@_hookspec
def modularbase_packs() -> Sequence[Pack]:  # type: ignore[empty-body]
    """Offer packs. Called once at start, of every command: import nothing heavy and read no weights here."""


@_hookspec
def modularbase_scores(message: str, scores: Mapping[str, float]) -> Mapping[str, float] | None:
    """Change scores (0..1, by pack id) before packs are chosen; return those that differ, or None.

    message: the user's message; empty where the caller gave tokens. scores: of every pack that may be chosen, as the
    plugins before changed them; what is said of others is left out. Called once a turn that is routed.
    """


@_hookspec(firstresult=True)
def modularbase_route(message: str, scores: Mapping[str, float], packs: Sequence[str]) -> Sequence[str] | None:
    """Choose the packs of a turn, the leading one first, in place of the router; None leaves the choice to others.

    packs: the ids that may be chosen. They share the answer equally. The first choice that names one of them counts.
    """


@_hookspec
def modularbase_fusions() -> Sequence[Fusion]:  # type: ignore[empty-body]
    """Offer ways of blending several packs' outputs, to be named as `fusion` in the settings."""


@_hookspec(firstresult=True)
def modularbase_fallback(pack_id: str, candidates: Sequence[str]) -> Sequence[str] | None:
    """Name who answer when `pack_id` cannot be loaded, of `candidates`; the first answer counts.

    They divide the share of `pack_id`, beside the turn's other packs. If one fails too, this is asked for it in turn.
    """


@_hookspec
def modularbase_importance(role: str, text: str, age: int) -> float | None:
    """Judge a page of 16 tokens that leaves the hot window; None has no opinion, the highest counts.

    1 is kept exactly for good; of others those nearest 0 give way first where room on disk is short. role: who speaks,
    system, user or assistant. age: turns since it was said, 0 where it is judged as it leaves. Not asked about texts
    that are read from files.
    """


@_hookspec
def modularbase_cold_stores() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Offer places where conversations are kept, to be named as `cold_store` in the settings.

    Each value is called with the conversation's folder and the keywords `limit_bytes`, and `shrink` (see
    `modularbase_core.context.cold.Shrink`), and returns an object with the methods and properties of
    `modularbase_core.context.cold.ColdStore`. What it raises for a user is `errors.SessionError`.
    """


@_hookspec
def modularbase_pack_loaded(event: PackLoaded) -> None:
    """Hear that a pack was brought into a slot."""


@_hookspec
def modularbase_pack_evicted(event: PackEvicted) -> None:
    """Hear that a pack left its slot."""


@_hookspec
def modularbase_turn_finished(event: TurnFinished) -> None:
    """Hear that an answer ended."""


@_hookspec
def modularbase_targets() -> Mapping[str, Mapping[str, Any]]:  # type: ignore[empty-body]
    """Offer targets for `modularbase compile --target NAME`, as `device.target.Target.to_dict` describes one.

    The `name` in a description is cpu or cuda, whatever the target is called.
    """
