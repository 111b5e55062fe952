"""The pack {{ cookiecutter.pack_id }} for ModularBase."""

from pathlib import Path

from modularbase_core.sdk import Pack, hookimpl


@hookimpl
def modularbase_packs() -> list[Pack]:
    """Offer the one pack."""
    return [Pack(Path(__file__).parent / "{{ cookiecutter.pack_id }}")]
