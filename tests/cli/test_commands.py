import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import click
import pytest
from importlib_metadata import EntryPoint, version
from tiny_packs import PACK, manifest, write_pack, write_tiny_set

from modularbase_core.cli.group import modularbase
from modularbase_core.errors import ModularBaseError
from modularbase_core.packs.catalog import BrokenPlugin, Catalog, InstalledPack, ShadowedPack
from modularbase_core.sdk import Pack

MOST_MODULES = 260
"""That `--help` may load, of any kind: an import of something heavy brings several hundred."""


def test_help_lists_every_command(run):
    done = run("--help")
    assert done.code == 0
    for name in ("chat", "compile", "doctor", "import", "pack", "train"):
        assert f"\n  {name} " in done.out


def test_version_is_that_of_the_distribution(run):
    assert run("--version").out == f"modularbase {version('modularbase')}\n"


def test_an_unknown_command_is_answered_with_the_nearest(run):
    done = run("chta")
    assert done.code == 2
    assert "no command 'chta' (did you mean 'chat'?)" in done.err


def test_help_imports_nothing_heavy_and_little_in_all():
    program = (
        "import sys\nbefore = len(sys.modules)\nfrom modularbase_core.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "names = 'numpy torch tvm tvm_ffi tokenizers safetensors pluggy tqdm modularbase_nano'\n"
        "print([name for name in names.split() if name in sys.modules], len(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy, _, count = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert int(count) < MOST_MODULES


class Entry(SimpleNamespace):
    """An entry point whose module need not exist."""

    def load(self):
        return self.loads()


@pytest.fixture
def plugin_command(monkeypatch):
    """Add a command of an installed plugin."""
    monkeypatch.delitem(modularbase.__dict__, "entries", raising=False)

    def add(name, loads):
        entry = Entry(name=name, loads=loads, dist=SimpleNamespace(name="modularbase-other"))
        monkeypatch.setitem(modularbase.entries, name, entry)

    yield add
    modularbase.__dict__.pop("entries", None)


def fail():
    raise ImportError("no module\nof this name")


def test_a_plugin_command_is_listed_unloaded_and_loaded_to_run(run, plugin_command):
    loaded = []

    def load():
        loaded.append(1)
        print("loading")
        return click.Command("greet", callback=lambda: click.echo("hello"))

    plugin_command("greet", load)
    assert "  greet    from modularbase-other" in run("--help").out
    assert loaded == []
    done = run("greet")
    assert (done.out, done.err) == ("hello\n", "loading\n")


def test_a_broken_plugin_command_stops_no_other(run, plugin_command):
    plugin_command("broken", fail)
    plugin_command("wrong", lambda: 3)
    assert run("--help").code == 0
    done = run("broken")
    assert done.code == 1
    assert (
        "the command 'broken' of modularbase-other cannot be loaded (ImportError: no module of this name)" in done.err
    )
    assert "the command 'wrong' of modularbase-other is no click command" in run("wrong").err


def test_our_own_commands_win_over_a_plugin_of_that_name(monkeypatch):
    ours, theirs = ("modularbase", "modularbase_core.cli.pack:pack"), ("a-plugin", "other:pack")
    found = [
        EntryPoint(name="pack", value=value, group="modularbase.commands")._for(SimpleNamespace(name=name))
        for name, value in (theirs, ours)
    ]
    monkeypatch.setattr("modularbase_core.cli.group.entry_points", lambda group: found)
    monkeypatch.delitem(modularbase.__dict__, "entries", raising=False)
    assert modularbase.entries["pack"].dist.name == "modularbase"
    del modularbase.__dict__["entries"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Make `discover` find the tiny set, a pack for another base and a broken plugin."""
    directories = [*write_tiny_set(tmp_path).values()]
    directories.append(write_pack(tmp_path / "foreign", manifest("foreign", "domain", PACK, base="other-base")))
    packs = [Pack(directory) for directory in directories]
    catalog = Catalog(
        tuple(InstalledPack(pack, pack.manifest, "modularbase-tiny") for pack in packs),
        (BrokenPlugin("bad", "modularbase-bad", "ImportError: nothing"),),
    )
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog)
    return tmp_path


def test_pack_list_tells_packs_refusals_and_breakage(run, tiny):
    done = run("pack", "list")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[3].split() == ["python_code", "(python)", "1.0.0", "domain", "0.0", "MB", "modularbase-tiny"]
    assert lines[5].startswith("refused: pack 'foreign' was made for base 'other-base', not 'tiny-base'")
    assert lines[6] == "broken: bad of modularbase-bad: ImportError: nothing"


def test_pack_list_as_json(run, tiny):
    value = json.loads(run("pack", "list", "--json").out)
    assert [one["id"] for one in value["packs"] if not one["refused"]] == [
        "tiny-base",
        "tiny-router",
        "general_chat",
        "python_code",
    ]
    assert value["broken"][0]["reason"] == "ImportError: nothing"
    assert value["problem"] is None


def test_pack_list_and_doctor_tell_that_an_older_version_is_used(run, tmp_path, monkeypatch):
    new = replace(manifest("python_code", "domain", PACK, base_compatibility=("2.0",)), version="2.0.0")
    newest = Pack(write_pack(tmp_path / "new", new))
    *residents, old = [Pack(directory) for directory in write_tiny_set(tmp_path).values()]
    catalog = Catalog(
        tuple(InstalledPack(pack, pack.manifest, "modularbase-tiny") for pack in (*residents, newest)),
        shadowed=(ShadowedPack(InstalledPack(old, old.manifest, "modularbase-old"), "2.0.0 is newer"),),
    )
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog)
    told = (
        "note: python_code 1.0.0 of modularbase-old is used instead of 2.0.0 of modularbase-tiny, "
        "which was made for tiny-base 2.0, but 1.0.0 is installed"
    )
    assert run("pack", "list").out.splitlines()[-1] == told
    assert told in run("doctor").out.splitlines()
    assert json.loads(run("pack", "list", "--json").out)["packs"][-1]["note"] == told.removeprefix("note: ")


def test_pack_list_of_nothing_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: Catalog())
    done = run("pack", "list")
    assert done.code == 0
    assert done.out == "chat cannot start: no base is installed; run `pip install modularbase-nano`\n"


@pytest.fixture
def compiled(monkeypatch):
    """Record what would be compiled."""
    asked = []

    def ensure(builds, cache_dir, progress):
        asked.extend(builds)
        return [cache_dir / build.architecture.kind for build in builds]

    monkeypatch.setattr("modularbase_core.device.artefact.ensure_artefacts", ensure)
    return asked


def test_compile_builds_each_architecture_once(run, tiny, compiled, tmp_path):
    done = run("compile", "--json")
    value = json.loads(done.out)
    assert [one["packs"] for one in value] == [["tiny-base"], ["tiny-router"], ["general_chat", "python_code"]]
    assert [build.dtype for build in compiled] == ["float32"] * 3
    assert value[0]["directory"] == str(tmp_path / "cache" / "base")
    assert run("compile", "python").out == f"python_code: {tmp_path / 'cache' / 'pack'}\n"


def test_compile_for_gpus_names_their_architectures(run, tiny, compiled):
    assert run("compile", "--target", "cuda", "--arch", "sm_86,sm_90").code == 0
    assert compiled[0].target.features == ("sm_86", "sm_90")
    assert compiled[0].dtype == "float16"
    assert "did you mean 'sm_86'?" in run("compile", "--target", "cuda", "--arch", "sm86").err
    assert "--arch is for --target cuda" in run("compile", "--arch", "sm_86").err


def test_doctor_finds_a_sound_installation(run, tiny):
    done = run("doctor", "--json")
    report = json.loads(done.out)
    assert (done.code, report["problems"]) == (0, [])
    assert report["versions"]["apache-tvm"] is not None
    assert [one["name"] for one in report["targets"]] == ["cpu", "cuda"]
    assert report["devices"][0]["physical_cores"] >= 1
    assert report["cache"]["writable"]
    assert not (tiny / "cache").exists()
    assert report["notes"][0] == "bad of modularbase-bad is broken: ImportError: nothing"
    assert "chat can run" in run("doctor").out


def test_doctor_fails_where_chat_would(run, tiny, monkeypatch):
    (tiny / "tiny-base/model.safetensors").write_bytes(b"short")
    (tiny / "python_code/model.safetensors").write_bytes(b"short")
    (tiny / "cache").write_text("a file where the folder should be")

    def missing(name):
        from importlib_metadata import PackageNotFoundError

        if name in ("apache-tvm", "torch"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("modularbase_core.cli.doctor.version", missing)
    done = run("doctor", "--json", "--cache", str(tiny / "cache" / "inside"))
    report = json.loads(done.out)
    assert done.code == 1
    problems = " | ".join(report["problems"])
    assert "apache-tvm is not installed; run `pip install apache-tvm`" in problems
    assert "tiny-base/model.safetensors has SHA-256" in problems
    assert "inside cannot be written" in problems
    assert "python_code" not in problems
    assert (
        "torch is not installed; chat has yet to compile 3 networks whose packs bring no graph (base, router, pack)"
        in problems
    )
    notes = " | ".join(report["notes"])
    assert "python_code/model.safetensors has SHA-256" in notes


@pytest.mark.parametrize("cached", [False, True])
def test_doctor_fails_without_a_c_compiler_only_where_something_must_be_compiled(run, tiny, monkeypatch, cached):
    monkeypatch.setattr("modularbase_core.cli.doctor.shutil.which", lambda name: None)
    if cached:
        monkeypatch.setattr("modularbase_core.device.artefact.check_artefact", lambda directory: None)
    done = run("doctor")
    assert done.code == (0 if cached else 1)
    assert f"{'note' if cached else 'problem'}: linking compiled code needs a C compiler" in done.out


def test_doctor_imports_neither_torch_nor_tvm():
    program = (
        "import sys\nfrom modularbase_core.cli import main\ntry:\n    main(['doctor'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'tvm', 'tvm_ffi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor_lists_artefacts_and_gpus(run, tiny, monkeypatch, tmp_path):
    meta = SimpleNamespace(architecture=PACK, target=SimpleNamespace(to_dict=lambda: {"name": "cpu"}), dtype="float32")
    rows = [(tmp_path / "0123456789abcdefgh", meta), (tmp_path / "bad", ModularBaseError("bad is corrupt"))]
    monkeypatch.setattr("modularbase_core.device.artefact.list_artefacts", lambda folder: rows)
    monkeypatch.setattr("modularbase_core.cli.doctor.shutil.which", lambda name: name)
    answer = SimpleNamespace(stdout="NVIDIA A10, 580.1, 23028, 8.6\n")
    monkeypatch.setattr("modularbase_core.cli.doctor.subprocess.run", lambda *more, **keys: answer)
    out = run("doctor").out
    assert "artefact 0123456789abcdef: pack for cpu, float32" in out
    assert "note: bad is corrupt" in out
    assert "device name NVIDIA A10, driver 580.1, memory_mib 23028, compute_capability 8.6" in out


def test_doctor_misses_the_gpu_that_the_settings_ask_for(run, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("modularbase_core.cli.doctor.shutil.which", lambda name: None)
    (tmp_path / "settings.toml").write_text('device = "cuda"\n')
    done = run("doctor", "--config", str(tmp_path / "settings.toml"))
    assert done.code == 1
    assert "problem: the settings ask for cuda, but no NVIDIA driver answers" in done.out
