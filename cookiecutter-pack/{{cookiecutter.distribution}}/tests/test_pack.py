"""Is the pack fit to be published?"""

import json
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from modularbase_core.cli import main
from modularbase_core.packs.catalog import discover
from modularbase_core.packs.resolve import line_up
from modularbase_core.sdk import Manifest, Pack
from modularbase_core.sdk.testing import check_pack

import {{ cookiecutter.module }} as plugin

PACK_ID = "{{ cookiecutter.pack_id }}"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def pack() -> Pack:
    """Return what the plugin offers."""
    (pack,) = plugin.modularbase_packs()
    return pack


@pytest.fixture
def manifest(pack: Pack) -> Manifest:
    """Check the pack's files and return its manifest."""
    return check_pack(pack.directory)


def test_the_pack_is_whole(manifest: Manifest) -> None:
    """The manifest says what the distribution does."""
    assert manifest.id == PACK_ID
    assert manifest.version == version("{{ cookiecutter.distribution }}")


def test_the_router_can_choose_it(pack: Pack) -> None:
    """It brings routing keys, and the examples that they are made from."""
    assert pack.routing.is_file()
    assert pack.examples.is_file()


def test_the_installed_entry_point_offers_it() -> None:
    """Once it is installed, it is found."""
    names = [entry.name for entry in entry_points(group="modularbase") if entry.load() is plugin]
    assert names == [PACK_ID]


def test_it_answers(pack: Pack, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers its first example, and nobody else does in its place."""
    question = json.loads(pack.examples.read_text(encoding="utf-8"))[0]["prompt"]
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--pack", PACK_ID, "--max-tokens", "8", "--quiet", "--json", question])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert [one["id"] for one in json.loads(printed.out)["packs"]] == [PACK_ID]


def test_the_model_card_is_filled_in(manifest: Manifest) -> None:
    """Whoever has trained it says what it is."""
    general_chat = line_up(discover(), manifest.base).general_chat.manifest
    if manifest.files["model.safetensors"] == general_chat.files["model.safetensors"]:
        pytest.skip("the weights are general chat's; fill in README.md once the pack is trained")
    assert "TO FILL IN" not in (ROOT / "README.md").read_text(encoding="utf-8")
