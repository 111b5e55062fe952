from dataclasses import replace
from pathlib import Path

import pytest
from tiny_packs import PACK, manifest

from modularbase_core.device.target import Target
from modularbase_core.host.builtin import FACTS, NAME, hooks_of
from modularbase_core.packs.catalog import Catalog, InstalledPack, plugin_manager
from modularbase_core.sdk import Pack, hookimpl


def catalog_of(*manifests):
    return Catalog(tuple(InstalledPack(Pack(Path(one.id)), one, "test") for one in manifests))


CATALOG = catalog_of(
    manifest("general_chat", "system", PACK),
    replace(manifest("python_code", "domain", PACK), fallback=("reasoning", "general_chat")),
    manifest("law", "domain", PACK),
)


@pytest.mark.parametrize(
    ("broken", "candidates", "answering"),
    [
        ("python_code", ["general_chat", "law", "reasoning"], ["reasoning", "general_chat"]),
        ("python_code", ["general_chat", "law"], ["general_chat"]),
        ("law", ["general_chat", "python_code", "reasoning"], ["general_chat"]),
        ("unheard_of", ["general_chat"], ["general_chat"]),
        ("law", ["python_code"], []),
    ],
)
def test_who_answers_for_a_broken_pack_stands_in_its_manifest_and_is_general_chat_else(broken, candidates, answering):
    assert hooks_of(CATALOG).fallback(broken, candidates) == answering


class Plugin:
    @hookimpl
    def modularbase_fallback(self, pack_id, candidates):
        return ["law"] if pack_id == "python_code" else None


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_plugin_is_asked_before_us_whoever_was_registered_first(ours_first):
    manager = plugin_manager()
    if ours_first:
        hooks_of(CATALOG, manager)
    manager.register(Plugin(), "plugin")
    hooks = hooks_of(CATALOG, manager)
    assert hooks.fallback("python_code", ["general_chat", "law"]) == ["law"]
    assert hooks.fallback("law", ["general_chat", "law"]) == ["general_chat"]
    assert [name for name, _ in manager.list_name_plugin()].count(NAME) == 1


def test_the_system_message_is_the_most_important_and_the_rest_fades():
    importance = hooks_of(CATALOG).importance
    assert importance("system", "", 1000) == 1.0
    fading = [importance(role, "well then", age) for age in range(20) for role in ("user", "assistant")]
    assert fading == sorted(fading, reverse=True)
    assert 0 < fading[-1] < fading[0] < 1


@pytest.mark.parametrize(
    "text",
    [
        "the code is 4711",
        "look into /var/log",
        r"open C:\Windows",
        "edit main.py",
        "call read_file",
        "I live in Lisbon now",
        "he said “never again”",
        "密码是「芝麻」",
    ],
)
def test_facts_of_the_user_outlive_small_talk_but_not_what_was_just_said(text):
    importance = hooks_of(CATALOG).importance
    assert importance("user", text, 6) == importance("user", "well then", 6) + FACTS
    assert importance("user", text, 20) > importance("user", "well then", 5)
    assert importance("user", text, 20) < importance("user", "well then", 2)
    assert importance("assistant", text, 6) == importance("assistant", "well then", 6)


@pytest.mark.parametrize("text", ["well then", "Tell me more. Why? I see!", "再说一遍，好吗？"])
def test_small_talk_holds_no_facts(text):
    assert hooks_of(CATALOG).importance("user", text, 3) == hooks_of(CATALOG).importance("assistant", text, 3)


def test_our_fusions_and_targets_are_offered():
    hooks = hooks_of(CATALOG)
    assert set(hooks.fusions()) == {"mean", "attention", "primary"}
    targets = hooks.targets()
    assert {name: Target.from_dict(dict(one)).dtype for name, one in targets.items()} == {
        "cpu": "float32",
        "cuda": "float16",
    }
    assert hooks.take_faults() == []
