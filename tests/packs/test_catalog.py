import json
import sys
from textwrap import dedent

import pytest
from importlib_metadata import EntryPoint
from tiny_packs import PACK, manifest, write_pack, write_tiny_set

from modularbase_core.errors import PackError
from modularbase_core.packs.catalog import discover, plugin_manager
from modularbase_core.sdk import Pack, hookimpl


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write a module that is imported for one test; return its entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(dedent(source))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return EntryPoint(name=name, value=name, group="modularbase")

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def offering(plugin):
    """Write a plugin that offers these directories."""

    def write(name, *directories):
        return plugin(
            name,
            f"""
            from pathlib import Path
            from modularbase_core.sdk import Pack, hookimpl

            @hookimpl
            def modularbase_packs():
                return [Pack(Path(directory)) for directory in {[str(one) for one in directories]!r}]
            """,
        )

    return write


def test_packs_are_listed_in_the_order_of_their_plugins(tmp_path, offering):
    tiny = write_tiny_set(tmp_path / "packs")
    python = tiny.pop("python_code")
    catalog = discover(found=[offering("z_python", python), offering("a_nano", *tiny.values())])
    assert [one.id for one in catalog.packs] == ["tiny-base", "tiny-router", "general_chat", "python_code"]
    assert catalog.broken == ()
    assert [one.id for one in catalog.of_type("system", "domain")] == ["general_chat", "python_code"]


def test_broken_plugins_never_stop_the_rest_and_are_listed_with_their_reason(tmp_path, plugin, offering):
    tiny = write_tiny_set(tmp_path / "packs")
    bad = write_pack(tmp_path / "packs" / "bad", manifest("bad", "domain", PACK))
    value = json.loads((bad / "manifest.json").read_text())
    (bad / "manifest.json").write_text(json.dumps({**value, "licens": "MIT"}))
    bare = write_pack(tmp_path / "packs" / "bare", manifest("bare", "domain", PACK))
    (bare / "model.safetensors").unlink()
    catalog = discover(
        found=[
            plugin("b_import", "import nothing_of_this_name"),
            plugin("b_syntax", "def"),
            plugin("b_exit", "raise SystemExit('goodbye')"),
            plugin(
                "b_raises",
                """
                from modularbase_core.sdk import hookimpl

                @hookimpl
                def modularbase_packs():
                    raise RuntimeError("first line\\nsecond line")
                """,
            ),
            plugin(
                "b_type",
                """
                from modularbase_core.sdk import hookimpl

                @hookimpl
                def modularbase_packs():
                    return "packs"
                """,
            ),
            plugin(
                "b_signature",
                """
                from modularbase_core.sdk import hookimpl

                @hookimpl
                def modularbase_packs(everything):
                    return []
                """,
            ),
            offering("b_mixed", bad, bare, tiny["python_code"]),
            offering("c_good", *tiny.values()),
        ]
    )
    assert [one.id for one in catalog.packs] == ["python_code", "tiny-base", "tiny-router", "general_chat"]
    reasons = {}
    for one in catalog.broken:
        reasons.setdefault(one.name, []).append(one.reason)
    assert reasons["b_import"] == ["ModuleNotFoundError: No module named 'nothing_of_this_name'"]
    assert reasons["b_syntax"][0].startswith("SyntaxError: ")
    assert reasons["b_exit"] == ["SystemExit: goodbye"]
    assert reasons["b_raises"] == ["RuntimeError: first line second line"]
    assert reasons["b_type"][0].startswith("TypeError: modularbase_packs must return a list")
    assert "{'everything'}" in reasons["b_signature"][0]
    assert "unknown key 'licens' (did you mean 'licence'?)" in reasons["b_mixed"][0]
    assert "model.safetensors is missing" in reasons["b_mixed"][1]
    assert reasons["c_good"][0].startswith("pack 'python_code' is already offered")


def test_two_entry_points_of_one_name_leave_the_first(tmp_path, offering):
    tiny = write_tiny_set(tmp_path / "packs")
    entry = offering("twice", tiny["tiny-base"])
    catalog = discover(found=[entry, entry])
    assert [one.id for one in catalog.packs] == ["tiny-base"]
    assert [one.name for one in catalog.broken] == ["twice"]


def test_a_plugin_object_can_be_registered_by_hand(tmp_path):
    directory = write_pack(tmp_path / "mine", manifest("mine", "domain", PACK))

    class Mine:
        @hookimpl
        def modularbase_packs(self):
            return [Pack(directory)]

    manager = plugin_manager()
    manager.register(Mine(), "mine")
    assert discover(manager, found=[]).find("mine").pack.weights == directory / "model.safetensors"


def test_a_pack_is_found_by_id_before_alias(tmp_path, offering):
    tiny = write_tiny_set(tmp_path / "packs")
    other = write_pack(tmp_path / "packs/python", manifest("python", "domain", PACK, aliases=("chat", "snake")))
    catalog = discover(found=[offering("a", *tiny.values()), offering("b", other)])
    assert catalog.find("python_code").id == "python_code"
    assert catalog.find("python").id == "python"
    assert catalog.find("snake").id == "python"
    with pytest.raises(PackError, match=r"'chat' is an alias of several packs \(general_chat, python\); use an id"):
        catalog.find("chat")
    with pytest.raises(PackError, match=r"no pack 'pyton' is installed \(did you mean 'python'\?\)"):
        catalog.find("pyton")


def test_nothing_installed_is_an_empty_catalog():
    catalog = discover(found=[])
    assert catalog.packs == catalog.broken == ()
    with pytest.raises(PackError, match=r"no pack 'x' is installed; `modularbase pack list` shows what is"):
        catalog.find("x")


def test_a_broken_plugin_or_pack_is_not_called_uninstalled(tmp_path, plugin, offering):
    bare = write_pack(tmp_path / "packs" / "folder", manifest("bare-pack", "domain", PACK))
    (bare / "model.safetensors").unlink()
    unread = write_pack(tmp_path / "packs" / "unread", manifest("unread", "domain", PACK))
    (unread / "manifest.json").write_text("{")
    catalog = discover(found=[plugin("b_import", "import nothing_of_this_name"), offering("b_mixed", bare, unread)])
    for word in ("b_import", "b-import"):
        with pytest.raises(PackError, match=f"pack '{word}' is installed but broken: ModuleNotFoundError: No module"):
            catalog.find(word)
    with pytest.raises(PackError, match=r"'bare-pack' is installed but broken: .*model\.safetensors is missing"):
        catalog.find("bare-pack")
    with pytest.raises(PackError, match="'unread' is installed but broken"):
        catalog.find("unread")
    with pytest.raises(PackError, match="no pack 'b_mixed' is installed"):
        catalog.find("b_mixed")


def test_what_a_plugin_prints_goes_to_standard_error(plugin, capsys):
    source = """
    from modularbase_core.sdk import hookimpl

    print("importing")

    @hookimpl
    def modularbase_packs():
        print("offering")
        return []
    """
    assert discover(found=[plugin("loud", source)]).broken == ()
    assert tuple(capsys.readouterr()) == ("", "importing\noffering\n")
