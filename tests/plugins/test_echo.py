"""The plugin that shows every hook: each of them, its command, and that all of it stands in its README."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from importlib_metadata import EntryPoint
from tiny_packs import write_tiny_set

from modularbase_core import cli
from modularbase_core.cli.group import modularbase
from modularbase_core.device.target import Target
from modularbase_core.packs.catalog import discover, plugin_manager
from modularbase_core.packs.hooks import Hooks
from modularbase_core.sdk import hookspecs
from modularbase_core.sdk.events import PackEvicted, PackLoaded, TurnFinished

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[2] / "plugins_example" / "modularbase-pack-echo"
DESCRIBED = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
README = (PROJECT / "README.md").read_text()
SCORES = {"general_chat": 0.1, "python_code": 0.2}


@pytest.fixture
def package(monkeypatch):
    """Import the plugin as if it were installed, and afresh."""
    monkeypatch.syspath_prepend(PROJECT)
    for name in [name for name in sys.modules if name.split(".")[0] == "modularbase_pack_echo"]:
        monkeypatch.delitem(sys.modules, name)
    yield import_module("modularbase_pack_echo")
    for name in [name for name in sys.modules if name.split(".")[0] == "modularbase_pack_echo"]:
        sys.modules.pop(name)


def entries(group):
    named = DESCRIBED["entry-points"][group].items()
    dist = SimpleNamespace(name=DESCRIBED["name"])
    return [EntryPoint(name=name, value=value, group=group)._for(dist) for name, value in named]


@pytest.fixture
def hooks(package):
    manager = plugin_manager()
    catalog = discover(manager, entries("modularbase"))
    assert catalog.broken == catalog.packs == ()
    assert [(one.name, one.faults) for one in catalog.plugins] == [("echo", ())]
    return Hooks(manager)


@pytest.fixture
def heard(package):
    return package.plugin.heard


def test_every_hook_is_implemented_and_told_in_the_readme(package):
    every = {name for name in vars(hookspecs) if name.startswith("modularbase_")}
    assert {name for name in dir(package.Echo) if name.startswith("modularbase_")} == every
    assert set(re.findall(r"`(modularbase_[a-z]+(?:_[a-z]+)?)`", README)) - {"modularbase_pack"} == every


def test_its_cold_store_is_ours_and_tells_of_itself(hooks, heard, tmp_path):
    with hooks.cold_stores()["echo"](tmp_path / "talk", limit_bytes=1 << 20):
        assert list(heard) == ["cold store: talk"]


def test_a_pack_whose_id_is_said_scores_highest(hooks, heard):
    assert hooks.scores("ask python_code, please", SCORES) == {"general_chat": 0.1, "python_code": 1.0}
    assert hooks.scores("ask anybody", SCORES) == SCORES
    assert list(heard) == ["scores: python_code named", "scores: no pack named"]


@pytest.mark.parametrize(
    ("message", "chosen"),
    [
        ("echo:general_chat hello", ("echo", ["general_chat"])),
        ("echo:python_code,gone,general_chat hello", ("echo", ["python_code", "general_chat"])),
        ("echo:gone hello", None),
        ("echo:", None),
        ("echo: hello", None),
        ("hello echo:general_chat", None),
    ],
)
def test_the_packs_after_echo_answer(hooks, message, chosen):
    assert hooks.route(message, SCORES, tuple(SCORES)) == chosen
    assert hooks.take_faults() == []


def test_its_fusion_gives_every_pack_the_same_share(hooks):
    shares = hooks.fusions()["equal"].weigh(np.array([0.7, 0.2, 0.1], np.float32), None)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, 1 / 3)


def test_a_pack_of_the_same_first_word_stands_in(hooks):
    assert hooks.fallback("python_code", ["general_chat", "python_web"]) == ["python_web"]
    assert hooks.fallback("law", ["general_chat", "python_web"]) == []


def test_what_is_to_be_remembered_is_important(hooks):
    assert hooks.importance("user", "Remember: I like tea", 9) == 1.0
    assert hooks.importance("assistant", "I remember", 9) == 0.0


def test_events_are_kept_in_memory_and_not_for_ever(hooks, heard, package):
    hooks.pack_loaded(PackLoaded("law", 2048, 0.25, True))
    hooks.pack_evicted(PackEvicted("law", "art"))
    hooks.turn_finished(TurnFinished({"art": 0.75, "law": 0.25}, {}, "stop", 5, 7, 0.5))
    assert list(heard) == [
        "loaded: law, 2048 bytes in 0.250 s, before it was asked for",
        "evicted: law, for art",
        "finished (stop): 7 tokens by art 75%, law 25%",
    ]
    for _ in range(package.KEPT):
        hooks.pack_evicted(PackEvicted("law", "art"))
    assert len(heard) == package.KEPT


def test_its_target_is_a_processor_without_newer_features(hooks):
    target = Target.from_dict(dict(hooks.targets()["cpu-portable"]))
    assert (target.name, target.features) == ("cpu", ())
    assert target.level in ("x86-64-v2", "generic")


@pytest.fixture
def installed(package, tmp_path, monkeypatch):
    """Make the tiny set and this plugin all that is installed."""
    directories = [str(path) for path in write_tiny_set(tmp_path / "packs").values()]
    (tmp_path / "tiny_offer.py").write_text(
        "from pathlib import Path\nfrom modularbase_core.sdk import Pack, hookimpl\n\n"
        f"@hookimpl\ndef modularbase_packs():\n    return [Pack(Path(one)) for one in {directories!r}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_offer", raising=False)
    tiny = EntryPoint(name="tiny", value="tiny_offer", group="modularbase")._for(SimpleNamespace(name="tiny"))
    monkeypatch.delitem(modularbase.__dict__, "entries", raising=False)
    ours = [entry for entry in modularbase.entries.values() if entry.dist.name == "modularbase"]
    monkeypatch.delitem(modularbase.__dict__, "entries")
    groups = {
        "modularbase": [tiny, *entries("modularbase")],
        "modularbase.commands": [*ours, *entries("modularbase.commands")],
    }
    for module in ("modularbase_core.packs.catalog", "modularbase_core.cli.group"):
        monkeypatch.setattr(f"{module}.entry_points", lambda group: groups[group])
    monkeypatch.setattr("modularbase_core.cli.settings.default_config_file", lambda: tmp_path / "none.toml")
    yield
    modularbase.__dict__.pop("entries", None)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exited:
        cli.main(arguments)
    printed = capsys.readouterr()
    return exited.value.code, printed.out, printed.err


def test_its_command_asks_and_shows_what_the_hooks_were_called_with(installed, cache, capsys):
    questions = ("echo:python_code hello", "ask general_chat")
    code, out, _ = run(capsys, "echo", *questions, "--max-tokens", "2", "--quiet", "--cache", str(cache))
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == ["scores: python_code named", "route: python_code"]
    assert lines[2].startswith("loaded: python_code, ")
    assert re.fullmatch(r"finished \(\w+\): [12] tokens by python_code 100%", lines[3])
    assert lines[4] == "scores: general_chat named"
    assert lines[-1].endswith("by general_chat 100%")


def test_its_command_refuses_an_empty_question_and_goes_with_the_plugin(installed, capsys):
    assert run(capsys, "echo", " ")[::2] == (1, "error: the question is empty; write a question\n")
    code, _, err = run(capsys, "--plugins", "tiny", "echo", "hello")
    assert code == 2
    assert "'echo' of modularbase-pack-echo is not loaded" in err


def test_its_readme_shows_its_entry_points_and_commands_that_exist(installed):
    shown = tomllib.loads(re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1])["project"]["entry-points"]
    assert shown == DESCRIBED["entry-points"]
    lines = re.findall(r"^modularbase (?:--plugins \w+ )?(\w+)", README, re.MULTILINE)
    assert sorted(set(lines)) == ["chat", "compile", "doctor", "echo"]
    assert set(lines) <= set(modularbase.entries)
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (PROJECT / target).exists()
