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


@pytest.mark.parametrize("name", ["modularbase-nano", "modularbase-pack-python"])
def test_a_plugin_wheel_holds_whole_packs(wheels, tmp_path, name):
    with zipfile.ZipFile(wheels[name]) as archive:
        archive.extractall(tmp_path)
    packs = [path.parent for path in tmp_path.rglob("manifest.json")]
    assert len(packs) == {"modularbase-nano": 3, "modularbase-pack-python": 1}[name]
    for pack in packs:
        assert check_pack(pack).version == metadata(wheels[name])["Version"]


def test_a_pack_requires_its_base_which_requires_the_core(wheels):
    def requires(name):
        return [str(Requirement(one)) for one in metadata(wheels[name]).get_all("Requires-Dist")]

    assert requires("modularbase-pack-python") == ["modularbase-nano<1.1,>=1.0"]
    assert requires("modularbase-nano") == ["modularbase<0.2,>=0.1"]
    assert metadata(wheels["modularbase"])["Requires-Python"] == "<3.14,>=3.10"
