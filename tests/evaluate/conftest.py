"""The model of the tiny packs in the forms that metrics need."""

import pytest
from tiny_packs import catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.evaluate.model import Model
from modularbase_core.packs.resolve import line_up


@pytest.fixture(scope="session")
def model(tiny_packs, cache):
    """The tiny packs, opened once for all tests."""
    catalog = catalog_of(tiny_packs)
    config = EngineConfig(cache_dir=cache, hot_tokens=4096)
    with Model(config, catalog, line_up(catalog), None, lambda phase, done, total: None) as made:
        yield made
