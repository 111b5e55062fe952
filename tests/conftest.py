"""What several folders share: a tiny set of packs, compiled once a session, and a model of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from eager import EXACT
from hypothesis import settings
from tiny_packs import catalog_of, write_tiny_set

from modularbase_core.config import EngineConfig
from modularbase_core.host import Host, build

# the same examples in every run; `--hypothesis-profile default` looks for new ones
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compiled", type=Path, help="keep compiled artefacts in this folder from run to run")


@pytest.fixture(scope="session")
def tiny_packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny packs by id; not to be written to."""
    return write_tiny_set(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A cache that the session's tests share, so that each architecture is compiled once, by whichever process."""
    kept: Path | None = request.config.getoption("--compiled")
    if kept is None and hasattr(request.config, "workerinput"):  # one of several processes (pytest-xdist)
        return tmp_path_factory.getbasetemp().parent / "cache"
    return kept or tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_host(tiny_packs: dict[str, Path], cache: Path) -> Iterator[Host]:
    """A fresh model of the tiny packs, compiled and running under TVM."""
    with build(EngineConfig(cache_dir=cache, hot_tokens=4096, **EXACT), catalog=catalog_of(tiny_packs)) as host:
        yield host
