import json
import sys
from dataclasses import replace
from textwrap import dedent
from types import SimpleNamespace

import pytest
from importlib_metadata import EntryPoint
from tiny_packs import PACK, manifest, write_pack, write_tiny_set

from modularbase_core.errors import ConfigError, PackError
from modularbase_core.packs.catalog import Catalog, discover, plugin_manager
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
    assert "c_good" not in reasons
    assert [one.name for one in catalog.plugins] == ["b_mixed", "c_good"]


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


def test_a_pack_whose_weights_are_yet_to_be_downloaded_is_listed_and_finds_them_in_the_store(tmp_path, offering):
    directory = write_version(tmp_path / "packs", "1.0.0")
    weights = directory / "model.safetensors"
    value = json.loads((directory / "manifest.json").read_text())
    value["downloads"] = {"model.safetensors": "https://example.org/model.safetensors"}
    (directory / "manifest.json").write_text(json.dumps(value))
    store = tmp_path / "store"
    store.mkdir()
    stored = weights.rename(store / value["files"]["model.safetensors"])
    entry = offering("remote", directory)
    one = discover(found=[entry], store=store).find("python_code")
    assert one.pack.weights == stored
    assert one.absent == ()
    stored.unlink()
    assert one.absent == ("model.safetensors",)


def from_distribution(entry, name):
    return entry._for(SimpleNamespace(name=name))


def write_version(folder, version, id="python_code"):
    return write_pack(folder / version, replace(manifest(id, "domain", PACK), version=version))


def test_of_several_versions_the_newest_is_listed_and_the_others_beside_it(tmp_path, offering):
    old, new, next_ = (write_version(tmp_path, version) for version in ("1.9.0", "1.10.0", "2.0.0rc1"))
    catalog = discover(
        found=[
            from_distribution(offering("python", new), "b-dist"),
            from_distribution(offering("python_old", old), "a-dist"),
            from_distribution(offering("python_next", next_), "c-dist"),
        ]
    )
    assert [one.manifest.version for one in catalog.packs] == ["2.0.0rc1"]
    assert catalog.find("python_code").distribution == "c-dist"
    assert [one.reason for one in catalog.shadowed] == [
        "c-dist offers 'python_code' 2.0.0rc1, which is newer than 1.10.0",
        "c-dist offers 'python_code' 2.0.0rc1, which is newer than 1.9.0",
    ]
    assert [one.manifest.version for one in catalog.versions("python_code")] == ["2.0.0rc1", "1.10.0", "1.9.0"]
    assert catalog.versions("other") == ()
    assert catalog.broken == ()


def test_the_same_version_twice_is_the_first_distributions(tmp_path, offering):
    one, other = write_version(tmp_path / "one", "1.0.0"), write_version(tmp_path / "other", "1.0.0")
    catalog = discover(
        found=[from_distribution(offering("b", other), "b-dist"), from_distribution(offering("a", one), "a-dist")]
    )
    assert catalog.find("python_code").pack.directory == one
    (shadowed,) = catalog.shadowed
    assert shadowed.installed.distribution == "b-dist"
    assert shadowed.reason == "a-dist offers the same version 1.0.0 of 'python_code'; uninstall one of the two"


def test_two_distributions_may_call_their_plugins_alike(tmp_path, plugin, offering):
    python = write_version(tmp_path, "1.0.0")
    first = from_distribution(offering("pack", python), "a-dist")
    other = plugin(
        "elsewhere", "from modularbase_core.sdk import hookimpl\n@hookimpl\ndef modularbase_packs(): return []"
    )
    second = EntryPoint(name="pack", value=other.value, group="modularbase")._for(SimpleNamespace(name="b-dist"))
    catalog = discover(found=[second, first])
    assert [one.name for one in catalog.plugins] == ["pack", "pack of b-dist"]
    assert catalog.broken == ()


def test_every_plugin_is_measured(plugin):
    slow = """
    import time
    from modularbase_core.sdk import hookimpl

    time.sleep(0.02)

    @hookimpl
    def modularbase_packs():
        time.sleep(0.02)
        return []
    """
    catalog = discover(found=[plugin("slow", slow), plugin("wrong", "import time; time.sleep(0.02); 1 / 0")])
    assert [one.name for one in catalog.plugins] == ["slow"]
    assert 0.04 <= catalog.plugins[0].seconds < 2
    assert 0.02 <= catalog.broken[0].seconds < 2


@pytest.mark.parametrize("word", ["b_plugin", "B-Plugin", "modularbase-b", "modularbase_b", "Modularbase.B"])
def test_plugins_are_limited_by_name_or_distribution(word, tmp_path, plugin, offering):
    entries = [
        from_distribution(plugin("a_plugin", "1 / 0"), "modularbase-a"),
        from_distribution(offering("b_plugin", write_version(tmp_path, "1.0.0")), "modularbase-b"),
    ]
    catalog = discover(found=entries, only=[word])
    assert [one.name for one in catalog.plugins] == ["b_plugin"]
    assert catalog.broken == ()
    assert catalog.find("python_code").distribution == "modularbase-b"
    with pytest.raises(PackError, match=rf"no pack 'law' is loaded: plugins are limited to {word}; name more in"):
        catalog.find("law")


def test_no_plugins_means_that_none_is_imported(plugin):
    catalog = discover(found=[plugin("a_plugin", "1 / 0")], only=())
    assert catalog == Catalog(only=())
    with pytest.raises(PackError, match="no pack 'x' is loaded: plugins are switched off; run without --no-plugins"):
        catalog.find("x")


def test_an_unknown_name_among_the_limits_is_answered_with_the_nearest(plugin):
    with pytest.raises(ConfigError, match=r"limited to 'a-plugn', but no such .*\(did you mean 'a_plugin'\?\)"):
        discover(found=[plugin("a_plugin", "1 / 0")], only=["a-plugn"])


def test_hooks_that_are_never_called_are_told(plugin):
    source = """
    from modularbase_core.sdk import hookimpl

    @hookimpl
    def modularbase_score(message, scores): ...

    @hookimpl(optionalhook=True)
    def modularbase_later(): ...

    @hookimpl(wrapper=True)
    def modularbase_scores(message, scores):
        return (yield)
    """
    catalog = discover(found=[plugin("misspelt", source), plugin("bare", "x = 1")])
    assert catalog.broken == ()
    assert {one.name: one.faults for one in catalog.plugins} == {
        "bare": ("it has no hook; mark its functions with modularbase_core.sdk.hookimpl",),
        "misspelt": (
            "there is no hook 'modularbase_score' (did you mean 'modularbase_scores'?); it is never called",
            "modularbase_scores is a wrapper, which is never called; make it a plain hook",
        ),
    }


def test_a_broken_plugin_leaves_no_hook_behind(plugin):
    source = """
    from modularbase_core.sdk import hookimpl

    @hookimpl
    def modularbase_fusions():
        return []

    @hookimpl
    def modularbase_packs({argument}):
        1 / 0
    """
    manager = plugin_manager()
    found = [plugin("raises", source.format(argument="")), plugin("signature", source.format(argument="everything"))]
    assert len(discover(manager, found).broken) == 2
    assert manager.hook.modularbase_fusions.get_hookimpls() == []


def test_an_entry_point_that_names_nothing_is_broken(plugin):
    plugin("odd", "nothing = None")
    catalog = discover(found=[EntryPoint(name="odd", value="odd:nothing", group="modularbase")])
    assert [one.reason for one in catalog.broken] == ["odd:nothing is None; name a module or an object that has hooks"]


def test_one_module_under_two_names_is_loaded_once(tmp_path, offering):
    first = offering("first", write_version(tmp_path, "1.0.0"))
    again = EntryPoint(name="second", value="first", group="modularbase")
    catalog = discover(found=[first, again])
    assert [one.id for one in catalog.packs] == ["python_code"]
    assert catalog.broken[0].reason == "first is already loaded as the plugin 'first'; uninstall one of the two"


@pytest.mark.parametrize(
    "where", ["raise KeyboardInterrupt", "@hookimpl\ndef modularbase_packs(): raise KeyboardInterrupt"]
)
def test_an_interrupt_while_plugins_are_loaded_goes_through(plugin, where):
    with pytest.raises(KeyboardInterrupt):
        discover(found=[plugin("interrupted", f"from modularbase_core.sdk import hookimpl\n{where}")])
