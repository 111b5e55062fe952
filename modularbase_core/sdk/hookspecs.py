"""The hooks that ModularBase calls; a plugin implements them with `markers.hookimpl`."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from modularbase_core.sdk.markers import PROJECT
from modularbase_core.sdk.pack import Pack

_hookspec = pluggy.HookspecMarker(PROJECT)


# a specification is a signature and its docstring: pluggy never runs it
@_hookspec
def modularbase_packs() -> Sequence[Pack]:  # type: ignore[empty-body]
    """Offer packs. Called once at start; import nothing heavy and read no weights here."""
