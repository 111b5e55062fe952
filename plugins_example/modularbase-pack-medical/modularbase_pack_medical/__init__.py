"""The medical pack for the nano base."""

from pathlib import Path

from modularbase_core.sdk import Pack, hookimpl


@hookimpl
def modularbase_packs() -> list[Pack]:
    """Offer the one pack."""
    return [Pack(Path(__file__).parent / "medical")]
