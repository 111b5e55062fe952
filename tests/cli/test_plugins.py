"""Which plugins the command line loads, what doctor tells of them, and what they add to compile."""

import json
import sys
from textwrap import dedent
from types import SimpleNamespace

import pytest
from importlib_metadata import EntryPoint
from tiny_packs import write_tiny_set

from modularbase_core.cli.group import modularbase
from modularbase_core.cli.settings import installed
from modularbase_core.config import EngineConfig

OFFER = """
from pathlib import Path
from modularbase_core.sdk import Pack, hookimpl

@hookimpl
def modularbase_packs():
    return [Pack(Path(directory)) for directory in {directories!r}]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install plugins: modules of this source, each with a distribution of its own, and nothing else."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(modularbase.__dict__, "entries", raising=False)
    ours = [entry for entry in modularbase.entries.values() if entry.dist.name == "modularbase"]
    monkeypatch.delitem(modularbase.__dict__, "entries")
    groups = {"modularbase": [], "modularbase.commands": ours}
    for module in ("modularbase_core.packs.catalog", "modularbase_core.cli.group"):
        monkeypatch.setattr(f"{module}.entry_points", lambda group: groups[group])

    def add(name, source, group="modularbase", value=None):
        module = f"plugin_{name}"
        (tmp_path / f"{module}.py").write_text(dedent(source))
        monkeypatch.delitem(sys.modules, module, raising=False)
        entry = EntryPoint(name=name, value=f"{module}{value or ''}", group=group)
        groups[group].append(entry._for(SimpleNamespace(name=f"modularbase-pack-{name}")))

    yield add
    modularbase.__dict__.pop("entries", None)
    for path in tmp_path.glob("plugin_*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def tiny(install, tmp_path):
    """Install the tiny set as the plugin `tiny`."""
    directories = [str(path) for path in write_tiny_set(tmp_path / "packs").values()]
    install("tiny", OFFER.format(directories=directories))


def plugins_of(done):
    return [one["name"] for one in json.loads(done.out)["plugins"]]


BROKEN = "1 / 0"


def test_all_plugins_are_loaded_unless_limited(run, tiny, install):
    install("other", OFFER.format(directories=[]))
    assert plugins_of(run("doctor", "--json")) == ["other", "tiny"]
    assert plugins_of(run("--plugins", "tiny", "doctor", "--json")) == ["tiny"]
    assert plugins_of(run("--plugins", "Modularbase.Pack-Tiny , other,", "doctor", "--json")) == ["other", "tiny"]
    assert plugins_of(run("--no-plugins", "doctor", "--json")) == []


def test_the_environment_limits_plugins_and_the_command_line_wins(run, tiny, install, monkeypatch):
    install("other", BROKEN)
    monkeypatch.setenv("MODULARBASE_PLUGINS", "tiny")
    assert plugins_of(run("doctor", "--json")) == ["tiny"]
    assert plugins_of(run("--plugins", "other", "doctor", "--json")) == ["other"]
    assert plugins_of(run("--no-plugins", "doctor", "--json")) == []
    monkeypatch.setenv("MODULARBASE_PLUGINS", "")
    assert plugins_of(run("doctor", "--json")) == ["other", "tiny"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--plugins", "tny", "doctor"], 1, "'tny', but no such plugin is installed (did you mean 'tiny'?)"),
        (["--plugins", "tny", "pack", "list"], 1, "'tny', but no such plugin is installed (did you mean 'tiny'?)"),
        (["--plugins", " , ", "doctor"], 2, "--plugins names no plugin; give names, or --no-plugins to load none"),
        (["--plugins", "tiny", "--no-plugins", "doctor"], 2, "--plugins and --no-plugins exclude each other"),
    ],
)
def test_limits_that_make_no_sense_are_refused(run, tiny, arguments, code, told):
    done = run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


def test_doctor_and_chat_say_that_plugins_are_switched_off(run, tiny):
    done = run("--no-plugins", "doctor")
    assert done.code == 1
    assert "plugins: switched off\n" in done.out
    told = "no base is loaded: plugins are switched off; run without --no-plugins"
    assert f"problem: {told}\n" in done.out
    done = run("--no-plugins", "chat", "hi")
    assert (done.code, done.out, done.err) == (1, "", f"error: {told}\n")
    assert run("--no-plugins", "pack", "list").out == f"chat cannot start: {told}\n"


def test_doctor_and_chat_say_what_plugins_are_limited_to(run, tiny, install):
    install("other", OFFER.format(directories=[]))
    done = run("--plugins", "other", "doctor")
    assert "plugins: limited to other\n" in done.out
    assert run("--plugins", "other", "chat", "hi").err == (
        "error: no base is loaded: plugins are limited to other; name more in --plugins or MODULARBASE_PLUGINS\n"
    )


COMMAND = """
import click

@click.command()
def greet():
    click.echo("hello")
"""


def test_the_commands_of_a_plugin_are_limited_with_it(run, tiny, install):
    install("greet", COMMAND, group="modularbase.commands", value=":greet")
    assert run("greet").out == run("--plugins", "greet", "greet").out == "hello\n"
    assert "greet" in run("--plugins", "greet,tiny", "--help").out
    assert "greet" not in run("--no-plugins", "--help").out
    done = run("--plugins", "tiny", "greet")
    assert done.code == 2
    assert "the command 'greet' of modularbase-pack-greet is not loaded: plugins are limited; admit" in done.err


def test_outside_a_command_every_plugin_is_loaded(tiny, tmp_path):
    catalog, manager = installed(EngineConfig(cache_dir=tmp_path / "cache"))
    assert [one.id for one in catalog.packs] == ["tiny-base", "tiny-router", "general_chat", "python_code"]
    assert {one.pack.store for one in catalog.packs} == {tmp_path / "cache" / "weights"}
    assert manager.has_plugin("tiny")


def test_doctor_measures_plugins_and_names_the_slow_the_broken_and_the_misspelt(run, tiny, install):
    install("broken", BROKEN)
    install("slow", "import time; time.sleep(0.06)\n" + OFFER.format(directories=[]))
    install("typo", "from modularbase_core.sdk import hookimpl\n@hookimpl\ndef modularbase_rout(): ...")
    done = run("doctor", "--json")
    assert done.code == 0
    report = json.loads(done.out)
    plugins = {one["name"]: one for one in report["plugins"]}
    assert list(plugins) == ["broken", "slow", "tiny", "typo"]
    assert plugins["slow"]["milliseconds"] >= 60
    assert plugins["broken"]["broken"] == "ZeroDivisionError: division by zero"
    assert plugins["tiny"] | {"milliseconds": 0} == {
        "name": "tiny",
        "distribution": "modularbase-pack-tiny",
        "milliseconds": 0,
        "faults": [],
        "broken": None,
    }
    notes = [note for note in report["notes"] if "modularbase-pack" in note]
    assert notes[0] == "broken of modularbase-pack-broken is broken: ZeroDivisionError: division by zero"
    assert notes[1].startswith("slow of modularbase-pack-slow takes ")
    assert notes[1].endswith(
        " ms to load, and every command waits for it; let it import what it needs when it needs it"
    )
    assert notes[2] == (
        "typo of modularbase-pack-typo: there is no hook 'modularbase_rout' (did you mean 'modularbase_route'?); "
        "it is never called"
    )
    assert len(notes) == 3


def test_doctor_names_packs_that_another_of_their_id_is_taken_for(run, tiny, install, tmp_path):
    install("again", OFFER.format(directories=[str(tmp_path / "packs" / "python_code")]))
    told = "note: python_code 1.0.0 of modularbase-pack-tiny is not the one listed: modularbase-pack-again offers the "
    assert f"{told}same version 1.0.0 of 'python_code'; uninstall one of the two\n" in run("doctor").out


TARGETS = """
from modularbase_core.sdk import hookimpl

@hookimpl
def modularbase_targets():
    return {targets!r}
"""
PLAIN = {"name": "cpu", "system": "linux", "machine": "x86_64", "level": "x86-64-v2", "features": []}


@pytest.fixture
def compiled(monkeypatch):
    """Record what would be compiled."""
    asked = []

    def ensure(builds, cache_dir, progress):
        asked.extend(builds)
        return [cache_dir / build.architecture.kind for build in builds]

    monkeypatch.setattr("modularbase_core.device.artefact.ensure_artefacts", ensure)
    return asked


def test_compile_builds_for_the_targets_of_plugins(run, tiny, install, compiled):
    install(
        "targets", TARGETS.format(targets={"plain": PLAIN, "a100": PLAIN | {"name": "cuda", "features": ["sm_80"]}})
    )
    assert run("compile", "python", "--target", "plain").code == 0
    assert run("compile", "python", "--target", "a100").code == 0
    assert [(one.target.level, one.target.features, one.dtype) for one in compiled] == [
        ("x86-64-v2", (), "float32"),
        ("x86-64-v2", ("sm_80",), "float16"),
    ]
    assert (
        "there is no target 'plan' (did you mean 'plain'?); use one of a100, cpu, cuda, plain"
        in run("compile", "--target", "plan").err
    )


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ({"name": "cpu"}, "the target 'odd' lacks a part; its plugin must describe name, system, machine, level and"),
        (PLAIN | {"name": "npu"}, "the target 'odd' is described as 'npu'; its plugin must say cpu or cuda"),
    ],
)
def test_a_target_that_is_described_wrongly_is_one_sentence(run, tiny, install, compiled, described, told):
    install("targets", TARGETS.format(targets={"odd": described}))
    done = run("compile", "--target", "odd")
    assert (done.code, compiled) == (1, [])
    assert told in done.err


def test_a_plugin_that_offers_no_targets_costs_a_note(run, tiny, install, compiled):
    install("targets", TARGETS.format(targets=["cpu"]))
    done = run("compile", "python")
    assert done.code == 0
    assert "note: plugin 'targets' answers modularbase_targets with a value of type list" in done.err


@pytest.mark.parametrize("option", ["--cache", "--config"])
def test_an_empty_path_is_not_the_current_folder(run, tiny, option):
    done = run("pack", "list", option, "")
    assert done.code == 2
    assert f"Invalid value for '{option}': it is empty; name a path" in done.err


@pytest.mark.parametrize("cached", [False, True])
def test_doctor_looks_for_nvrtc_where_the_settings_ask_for_cuda(run, tiny, tmp_path, monkeypatch, cached):
    monkeypatch.setattr("modularbase_core.cli.doctor.importlib.util.find_spec", lambda name: None)
    if cached:
        monkeypatch.setattr("modularbase_core.device.artefact.check_artefact", lambda directory: None)
    assert "NVRTC" not in run("doctor").out
    (tmp_path / "settings.toml").write_text('device = "cuda"\n')
    out = run("doctor", "--config", str(tmp_path / "settings.toml")).out
    kind = "note" if cached else "problem"
    assert f"{kind}: compiling for CUDA needs headers and NVRTC and cuda-bindings; " in out
    assert "; run `pip install 'modularbase[cuda]'`" in out


def test_doctor_finds_nvrtc_where_the_wheels_put_it(run, tiny, tmp_path, monkeypatch):
    home = tmp_path / "nvidia" / "cu13"
    for name in ("include/cuda_fp16.h", "lib/libnvrtc.so.13"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(home.parent)])
    monkeypatch.setattr("modularbase_core.cli.doctor.importlib.util.find_spec", lambda name: spec)
    (tmp_path / "settings.toml").write_text('device = "cuda"\n')
    assert "NVRTC" not in run("doctor", "--config", str(tmp_path / "settings.toml")).out


def test_an_interrupt_within_a_plugin_ends_the_command(run, tiny, install):
    install("busy", "raise KeyboardInterrupt")
    done = run("doctor")
    assert (done.code, done.out) == (130, "")
