"""The nano set: base, router and general chat."""

from pathlib import Path

from modularbase_core.sdk import Pack, hookimpl


@hookimpl
def modularbase_packs() -> list[Pack]:
    """Offer the three packs that every turn needs."""
    return [Pack(Path(__file__).parent / name) for name in ("base", "router", "general_chat")]
