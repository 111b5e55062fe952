import importlib.util
import sys
from pathlib import Path

import pytest

from modularbase_core.device.weights import read_background, read_routing
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.keys import BACKGROUND
from modularbase_core.packs.resolve import line_up
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.manifest import weights_name
from modularbase_core.sdk.testing import check_pack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECTS = Path(__file__).parents[2] / "plugins_example"
MODULES = {
    "modularbase-nano": ("modularbase_nano", ["nano-base", "nano-router", "general_chat"]),
    "modularbase-pack-python": ("modularbase_pack_python", ["python_code"]),
    "modularbase-pack-reasoning": ("modularbase_pack_reasoning", ["reasoning"]),
    "modularbase-pack-medical": ("modularbase_pack_medical", ["medical"]),
    "modularbase-pack-legal": ("modularbase_pack_legal", ["legal"]),
    "modularbase-pack-creative": ("modularbase_pack_creative", ["creative_writing"]),
}
DOMAINS = [ids[0] for project, (_, ids) in MODULES.items() if project.startswith("modularbase-pack-")]
LIMIT_BYTES = 32_000_000


def shipped():
    """Every shipped pack."""
    return [pack for project in MODULES for pack in load(project).modularbase_packs()]


def load(project):
    """Run a plugin's module as an entry point would, installed or not."""
    name = MODULES[project][0]
    spec = importlib.util.spec_from_file_location(name, PROJECTS / project / name / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_project_is_looked_at():
    # echo brings no packs; test_echo.py looks at it
    assert {path.parent.name for path in PROJECTS.glob("*/pyproject.toml")} == {*MODULES, "modularbase-pack-echo"}


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
    catalog = Catalog(tuple(InstalledPack(pack, pack.manifest, "test") for pack in shipped()))
    lineup = line_up(catalog)
    assert [one.id for one in lineup.routable] == ["general_chat", *DOMAINS]
    assert lineup.refused == {}
    aliases = {"python": "python_code", "logic": "reasoning", "medicine": "medical", "law": "legal"}
    assert {alias: catalog.find(alias).id for alias in aliases} == aliases
    assert lineup.base.manifest.network.window.trained_tokens >= 1024


def test_the_shipped_packs_say_under_what_terms_and_what_they_are_for():
    for pack in shipped():
        assert pack.manifest.licence
        assert pack.manifest.description


def test_the_shipped_domain_packs_have_keys_of_the_shipped_weights_and_examples():
    packs = {pack.id: pack for pack in shipped()}
    base, router = packs["nano-base"], packs["nano-router"]
    key_size = router.manifest.network.key_size
    for name in DOMAINS:  # general chat answers what no key claims
        routing = read_routing(packs[name].routing, key_size)
        # keys of other weights would be made again at every first start
        assert routing.made_with == weights_name(base.manifest, router.manifest)
        assert len(read_examples(packs[name].examples)) >= 8


def test_the_shipped_router_brings_a_background_for_the_keys_of_other_packs():
    router = next(pack for pack in shipped() if pack.id == "nano-router")
    background = read_background(router.routing, router.manifest.network.key_size)
    assert len(background.centres) == BACKGROUND
    assert len(background.others) >= 256


def test_no_two_shipped_packs_share_a_name():
    names = [name for pack in shipped() for name in (pack.id, *pack.manifest.aliases)]
    assert len(set(names)) == len(names)


def test_the_shipped_weights_stay_small():
    assert sum(path.stat().st_size for path in PROJECTS.rglob("*.safetensors")) <= LIMIT_BYTES
