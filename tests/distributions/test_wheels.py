import zipfile
from email import message_from_bytes

import pytest
from packaging.requirements import Requirement

from modularbase_core.sdk.testing import check_pack


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_core_wheel_holds_both_packages_typed_and_the_licence(wheels):
    held = names(wheels["modularbase"])
    assert {"modularbase_core/py.typed", "modularbase_compiler/py.typed", "modularbase_core/host/chat.py"} <= held
    assert "modularbase_core/sdk/manifest.schema.json" in held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert not any(name.startswith(("tests/", "plugins_example/", "docs/")) for name in held)


PACKS = {
    "modularbase-nano": ["general_chat", "tiny-base", "tiny-router"],
    "modularbase-pack-python": ["python_code"],
    "modularbase-pack-reasoning": ["reasoning"],
    "modularbase-pack-medical": ["medical"],
    "modularbase-pack-legal": ["legal"],
    "modularbase-pack-creative": ["creative_writing"],
}


@pytest.mark.parametrize("name", PACKS)
def test_a_plugin_wheel_holds_whole_packs(wheels, tmp_path, name):
    with zipfile.ZipFile(wheels[name]) as archive:
        archive.extractall(tmp_path)
    packs = [check_pack(path.parent) for path in tmp_path.rglob("manifest.json")]
    assert sorted(pack.id for pack in packs) == PACKS[name]
    assert {pack.version for pack in packs} == {metadata(wheels[name])["Version"]}


def test_a_plugin_without_packs_is_code_alone(wheels):
    held = {name for name in names(wheels["modularbase-pack-echo"]) if ".dist-info/" not in name}
    assert held == {"modularbase_pack_echo/__init__.py", "modularbase_pack_echo/command.py"}


@pytest.mark.parametrize("name", [*PACKS, "modularbase-pack-echo"])
def test_a_plugin_wheel_tells_who_offers_its_packs_and_brings_no_recipes(wheels, name):
    with zipfile.ZipFile(wheels[name]) as archive:
        (entries,) = [one for one in archive.namelist() if one.endswith("entry_points.txt")]
        assert "[modularbase]" in archive.read(entries).decode()
    assert not any("recipes" in one or one.endswith((".toml", ".pt")) for one in names(wheels[name]))
    assert metadata(wheels[name])["License-Expression"] == "Apache-2.0"


def test_a_pack_requires_its_base_which_requires_the_core(wheels):
    def requires(name):
        return [str(Requirement(one)) for one in metadata(wheels[name]).get_all("Requires-Dist")]

    for name in PACKS.keys() - {"modularbase-nano"}:
        assert requires(name) == ["modularbase-nano<1.2,>=1.1"]
    assert requires("modularbase-nano") == ["modularbase<0.2,>=0.1"]
    assert metadata(wheels["modularbase"])["Requires-Python"] == "<3.14,>=3.10"
