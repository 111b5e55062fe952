import importlib.util
import sys
from pathlib import Path

import pytest

from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.resolve import line_up
from modularbase_core.sdk.testing import check_pack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECTS = Path(__file__).parents[2] / "plugins_example"
MODULES = {
    "modularbase-nano": ("modularbase_nano", ["nano-base", "nano-router", "general_chat"]),
    "modularbase-pack-python": ("modularbase_pack_python", ["python_code"]),
}


def load(project):
    """Run a plugin's module as an entry point would, installed or not."""
    name = MODULES[project][0]
    spec = importlib.util.spec_from_file_location(name, PROJECTS / project / name / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("project", MODULES)
def test_the_entry_point_names_the_module_that_offers_the_packs(project):
    described = tomllib.loads((PROJECTS / project / "pyproject.toml").read_text())["project"]
    name, ids = MODULES[project]
    assert list(described["entry-points"]["modularbase"].values()) == [name]
    packs = load(project).modularbase_packs()
    assert [pack.id for pack in packs] == ids
    assert {pack.manifest.version for pack in packs} == {described["version"]}


@pytest.mark.parametrize("project", MODULES)
def test_the_shipped_packs_are_whole(project):
    for pack in load(project).modularbase_packs():
        check_pack(pack.directory)


def test_the_shipped_packs_run_together():
    packs = [pack for project in MODULES for pack in load(project).modularbase_packs()]
    catalog = Catalog(tuple(InstalledPack(pack, pack.manifest, "test") for pack in packs))
    lineup = line_up(catalog)
    assert [one.id for one in lineup.routable] == ["general_chat", "python_code"]
    assert lineup.refused == {}
    assert catalog.find("python").id == "python_code"
    assert lineup.base.manifest.network.window.trained_tokens >= 1024


def test_the_shipped_domain_packs_have_keys_and_examples():
    for project in MODULES:
        for pack in load(project).modularbase_packs():
            if pack.manifest.type == "domain":  # general chat answers what no key claims
                assert pack.routing.is_file()
                assert pack.examples.is_file()
            assert pack.manifest.licence
            assert pack.manifest.description


def test_the_shipped_weights_stay_small():
    assert sum(path.stat().st_size for path in PROJECTS.rglob("*.safetensors")) <= 8 << 20
