import pytest
from kept_sessions import IDS, keep
from tiny_packs import catalog_of

from modularbase_core.config import EngineConfig


@pytest.fixture
def config(tmp_path):
    return EngineConfig(sessions_dir=tmp_path / "sessions", session_bytes=1 << 26)


@pytest.fixture
def catalog(tiny_packs):
    return catalog_of(tiny_packs)


@pytest.fixture
def kept(config, catalog):
    """The folder of a session called garden."""
    folder = config.sessions_dir / "garden"
    keep(folder, catalog, IDS)
    return folder
