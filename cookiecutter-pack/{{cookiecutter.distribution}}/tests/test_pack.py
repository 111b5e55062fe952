"""Is the pack fit to be published? Run after `modularbase train ... --ship`."""

from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from modularbase_core.sdk import Manifest, Pack
from modularbase_core.sdk.testing import check_pack

import {{ cookiecutter.module }} as plugin

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pack() -> Pack:
    (pack,) = plugin.modularbase_packs()
    return pack


@pytest.fixture
def manifest(pack: Pack) -> Manifest:
    return check_pack(pack.directory)


def test_the_pack_is_whole(manifest: Manifest) -> None:
    assert manifest.id == "{{ cookiecutter.pack_id }}"
    assert manifest.version == version("{{ cookiecutter.distribution }}")


def test_the_router_can_choose_it(pack: Pack) -> None:
    assert pack.routing.is_file()
    assert pack.examples.is_file()


def test_the_installed_entry_point_offers_it() -> None:
    names = [entry.name for entry in entry_points(group="modularbase") if entry.load() is plugin]
    assert names == ["{{ cookiecutter.pack_id }}"]


def test_the_model_card_is_filled_in() -> None:
    assert "TO FILL IN" not in (ROOT / "README.md").read_text(encoding="utf-8")
