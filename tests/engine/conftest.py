"""The tiny set with more packs, and models of it that differ in their settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from eager import EXACT
from tiny_packs import PACK, catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.host import Parts
from modularbase_core.host.builtin import hooks_of
from modularbase_core.packs.catalog import plugin_manager

MORE = ("law", "poetry")


@pytest.fixture(scope="session")
def four_packs(tiny_packs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny set and the packs `law` and `poetry`; not to be written to."""
    root = tmp_path_factory.mktemp("more")
    more = {name: write_pack(root / name, manifest(name, "domain", PACK), 10 + seed) for seed, name in enumerate(MORE)}
    return {**tiny_packs, **more}


@pytest.fixture(scope="session")
def parts_of(cache: Path) -> Callable[..., Parts]:
    """Wire packs by settings, with plugins: objects that implement hooks."""

    def wire(packs: dict[str, Path], *plugins: object, **settings: object) -> Parts:
        manager = plugin_manager()
        for number, plugin in enumerate(plugins):
            manager.register(plugin, name=f"plugin{number}")
        config = EngineConfig(cache_dir=cache, **{"hot_tokens": 8192, **EXACT, **settings})
        catalog = catalog_of(packs)
        return Parts(config, catalog, None, hooks_of(catalog, manager))

    return wire
