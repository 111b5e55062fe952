"""`modularbase pack ...` in this process: packs of a fake installation and a pip that only pretends."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_packs import PACK, catalog_of, manifest, write_pack, write_tiny_set
from tiny_wheels import NOT_FOUND, FakePip, write_wheel

from modularbase_core.errors import ArtefactError
from modularbase_core.packs.catalog import BrokenPlugin, Catalog, InstalledPack, LoadedPlugin
from modularbase_core.packs.pip import Outcome, Pip
from modularbase_core.sdk import Pack
from modularbase_core.sdk.manifest import WEIGHTS_FILE, Manifest, write_manifest

# names of distributions that are not there, whatever is installed where the tests run
NANO, PYTHON = "modularbase-tiny", "modularbase-pack-tiny-python"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """What is installed: base, router and general chat of one distribution, a Python pack of another."""
    directories = write_tiny_set(tmp_path / "site")
    packs = catalog_of(directories).packs
    state = SimpleNamespace(
        catalog=Catalog(
            tuple(replace(one, distribution=PYTHON if one.id == "python_code" else NANO) for one in packs),
            plugins=(LoadedPlugin("nano", NANO), LoadedPlugin("python_code", PYTHON)),
        ),
        directories=directories,
        pip=FakePip(),
        versions={NANO: "1.0.0", PYTHON: "1.0.0"},
    )

    def discover(*more, store=None, **keys):
        stored = [replace(one, pack=replace(one.pack, store=store)) for one in state.catalog.packs]
        return replace(state.catalog, packs=tuple(stored))

    monkeypatch.setattr("modularbase_core.packs.catalog.discover", discover)
    for place in ("install.pip_of", "remove.pip_of", "lock.pip_of"):
        monkeypatch.setattr(f"modularbase_core.cli.pack.{place}", lambda quiet: Pip(runner=state.pip))
    monkeypatch.setattr("modularbase_core.packs.install.installed_version", state.versions.get)
    monkeypatch.setattr("modularbase_core.packs.lockfile._version", state.versions.__getitem__)
    monkeypatch.setattr("modularbase_core.packs.lockfile._address", lambda name: "")
    return state


def add(site, directory, distribution, **more):
    """Make a pack in `directory` an installed one."""
    pack = Pack(directory)
    one = InstalledPack(pack, pack.manifest, distribution)
    site.catalog = replace(site.catalog, packs=(*site.catalog.packs, one), **more)
    return one


def apart(tmp_path, site, id="apart"):
    """Install a pack whose weights are to be downloaded."""
    described = manifest(id, "domain", PACK)
    directory = write_pack(tmp_path / "site" / id, described)
    content = (directory / WEIGHTS_FILE).read_bytes()
    write_manifest(directory, replace(described, downloads={WEIGHTS_FILE: "http://127.0.0.1:9/w"}))
    (directory / WEIGHTS_FILE).unlink()
    one = add(site, directory, f"modularbase-pack-{id}")
    return one, content


def store(tmp_path, one, content):
    """Put downloaded weights where `fetch` would."""
    path = tmp_path / "cache" / "weights" / one.manifest.files[WEIGHTS_FILE]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_every_command_has_help(run):
    done = run("pack", "--help")
    assert done.code == 0
    for name in ("build", "check", "export", "fetch", "info", "install", "list", "lock", "pin", "remove", "verify"):
        assert f"\n  {name} " in done.out
        assert run("pack", name, "--help").code == 0
    assert "did you mean 'install'?" in run("pack", "instal").err


def test_info_tells_what_a_pack_is_and_whether_it_runs(run, site):
    done = run("pack", "info", "python")
    assert done.code == 0
    assert re.match(r"python_code  1\.0\.0, domain, 0\.\d MB\n", done.out)
    assert re.search(r"can run +yes\n", done.out)
    assert "examples:\n  hi\n" in done.out
    value = json.loads(run("pack", "info", "python", "--json").out)
    assert (value["id"], value["refused"], value["fetched"]) == ("python_code", None, True)
    assert (value["distribution"], value["distribution_version"]) == (PYTHON, "1.0.0")
    assert "no pack 'pithon' is installed (did you mean 'python'?)" in run("pack", "info", "pithon").err


def test_info_says_why_a_pack_does_not_fit(run, site, tmp_path):
    add(site, write_pack(tmp_path / "foreign", manifest("foreign", "domain", PACK, base="other-base")), "x")
    assert "was made for base 'other-base', not 'tiny-base'" in run("pack", "info", "foreign").out
    for resident in ("tiny-base", "tiny-router", "general_chat"):
        assert json.loads(run("pack", "info", resident, "--json").out)["refused"] is None


def test_info_prints_the_model_card(run, site):
    (site.directories["python_code"] / "README.md").write_text("# What it is for\n")
    assert run("pack", "info", "python", "--card").out == "# What it is for\n"
    done = run("pack", "info", "general_chat", "--card")
    assert (done.code, done.out) == (1, "")
    assert "brings no model card" in done.err
    assert re.search(r"model card +none\n", run("pack", "info", "general_chat").out)


def test_weights_that_are_yet_to_come_are_told_with_what_to_do(run, site, tmp_path):
    one, content = apart(tmp_path, site)
    told = "run `modularbase pack fetch apart`"
    assert f"refused: pack 'apart' lacks {WEIGHTS_FILE}, yet to be downloaded; {told}" in run("pack", "list").out
    assert told in run("pack", "info", "apart").out
    assert told in run("pack", "verify", "apart", "--no-run").out
    assert told in run("pack", "export", "apart", str(tmp_path / "out")).err
    store(tmp_path, one, content)
    assert "refused" not in run("pack", "list").out
    assert re.search(r"downloads +fetched\n", run("pack", "info", "apart").out)
    assert run("pack", "verify", "apart", "--no-run").code == 0


def test_fetch_brings_what_is_missing(run, site, tmp_path, monkeypatch):
    assert run("pack", "fetch").out == "nothing to fetch: every file is here\n"
    one, content = apart(tmp_path, site)
    monkeypatch.setattr(
        "modularbase_core.packs.fetch.fetch", lambda download, folder, progress: store(tmp_path, one, content)
    )
    assert run("pack", "fetch", "apart").out == f"fetched apart/{WEIGHTS_FILE}\n"


def test_fetch_that_fails_is_a_sentence_and_an_exit_code(run, site, tmp_path, monkeypatch):
    apart(tmp_path, site)
    monkeypatch.setattr("modularbase_core.packs.fetch.ATTEMPTS", 1)
    done = run("pack", "fetch")
    assert (done.code, done.out) == (1, "")
    assert "cannot be fetched from http://127.0.0.1:9/w (Connection refused)" in done.err


def test_verify_finds_the_one_that_is_damaged(run, site):
    assert run("pack", "verify", "--no-run").code == 0
    (site.directories["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "verify", "--no-run", "--json")
    value = json.loads(done.out)
    assert (done.code, value["sound"]) == (1, False)
    assert [one["id"] for one in value["packs"] if one["fault"]] == ["python_code"]
    lines = run("pack", "verify", "--no-run").out.splitlines()
    assert [line.split()[2:] for line in lines[:4]].count(["FILES", "UNSOUND"]) == 1
    assert run("pack", "verify", "general_chat", "--no-run").code == 0


def test_verify_counts_broken_plugins_where_all_are_asked_for(run, site):
    site.catalog = replace(site.catalog, broken=(BrokenPlugin("bad", "x", "ImportError: nothing"),))
    done = run("pack", "verify", "--no-run")
    assert done.code == 1
    assert "bad is broken: ImportError: nothing" in done.out


def test_verify_tells_why_nothing_can_answer(run, site, monkeypatch):
    def build(*more, **keys):
        raise ArtefactError("no compiler is here")

    monkeypatch.setattr("modularbase_core.host.build", build)
    done = run("pack", "verify", "python")
    assert done.code == 1
    assert "CANNOT ANSWER" in done.out
    assert "python_code: no compiler is here" in done.out


def test_check_needs_no_installation(run, site):
    directory = site.directories["python_code"]
    assert run("pack", "check", str(directory)).out.startswith("python_code 1.0.0 is sound (3 files")
    (directory / "examples.json").unlink()
    done = run("pack", "check", str(directory))
    assert done.code == 1
    assert "examples.json is missing" in done.err


def test_install_of_what_is_there_asks_pip_nothing(run, site):
    done = run("pack", "install", "python")
    assert (done.code, site.pip.asked) == (0, [])
    assert done.out == f"{PYTHON} is already installed; --upgrade looks for a newer version\n"


def test_install_mends_what_is_damaged(run, site, tmp_path):
    site.pip.offered[PYTHON] = write_wheel(tmp_path, PYTHON, packs=[manifest("python_code", "domain", PACK)])
    (site.directories["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    run("pack", "install", PYTHON, "--no-takeover")
    assert [words[-1] for words in site.pip.commands("install")] == [f"{PYTHON}==1.0.0"]


@pytest.fixture
def sql(site, tmp_path):
    """A wheel of another pack, which pip can get; once it is installed, it is there."""
    described = manifest("sql", "domain", PACK)
    site.pip.offered["modularbase-pack-sql"] = write_wheel(tmp_path, "modularbase-pack-sql", packs=[described])

    def arrive():
        add(site, write_pack(tmp_path / "site/sql", described), "modularbase-pack-sql")

    plain = FakePip.__call__

    class Arriving(FakePip):
        def __call__(self, command, shown):
            outcome = plain(self, command, shown)
            if command[3] == "install" and outcome.code == 0:
                arrive()
            return outcome

    site.pip.__class__ = Arriving
    return described


def test_install_tells_what_came_and_what_it_takes_over(run, site, sql, monkeypatch):
    asked = []

    def takeover(before, after, config, progress):
        asked.append((len(before.packs), len(after.packs)))
        return type("Table", (), {"to_dict": lambda self: {"rows": 1}, "__str__": lambda self: "the table"})()

    monkeypatch.setattr("modularbase_core.host.takeover.takeover", takeover)
    done = run("pack", "install", "sql")
    assert done.code == 0
    assert re.fullmatch(r"installed sql 1\.0\.0 \(domain, 0\.\d MB\) of modularbase-pack-sql\n\nthe table\n", done.out)
    assert asked == [(4, 5)]


def test_install_as_json(run, site, sql, monkeypatch):
    def takeover(*more):
        raise ArtefactError("no compiler is here")

    monkeypatch.setattr("modularbase_core.host.takeover.takeover", takeover)
    value = json.loads(run("pack", "install", "sql", "--json").out)
    assert [(one["id"], one["was"], one["refused"]) for one in value["changed"]] == [("sql", None, None)]
    assert (value["takeover"], value["takeover_problem"]) == (None, "no compiler is here")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"base": "other-base"}, "was made for base 'other-base', not 'tiny-base'; .*; nothing was installed"),
        ({"base_compatibility": ("2.0",)}, r"made for tiny-base 2\.0, but 1\.0\.0 is installed"),
    ],
)
def test_install_refuses_what_does_not_fit_unless_forced(run, site, tmp_path, change, told):
    wheel = write_wheel(tmp_path, "modularbase-pack-sql", packs=[replace(manifest("sql", "domain", PACK), **change)])
    done = run("pack", "install", str(wheel))
    assert done.code == 1
    assert re.search(told, done.err)
    assert site.pip.asked == []
    done = run("pack", "install", str(wheel), "--force", "--no-takeover")
    assert done.code == 0
    assert "note: installed all the same" in done.out
    assert len(site.pip.commands("install")) == 1


def test_force_installs_nothing_that_is_damaged(run, site, tmp_path):
    wheel = write_wheel(tmp_path, "modularbase-pack-sql", packs=[manifest("sql", "domain", PACK)])
    wheel.write_bytes(wheel.read_bytes()[:-500])
    done = run("pack", "install", str(wheel), "--force")
    assert (done.code, site.pip.asked) == (1, [])
    assert "is no whole wheel" in done.err


def test_one_bad_pack_of_several_stops_them_all(run, site, sql):
    done = run("pack", "install", "sql", "nothing")
    assert done.code == 1
    assert "no pack 'nothing' is offered" in done.err
    assert site.pip.commands("install") == []


def test_install_of_a_link_folder_that_is_not_there_is_refused(run, site, tmp_path):
    done = run("pack", "install", "sql", "--find-links", str(tmp_path / "gone"))
    assert done.code == 2
    assert "does not exist; name a folder or a page" in done.err


def test_upgrade_of_the_newest_installs_nothing(run, site, tmp_path):
    site.pip.offered[PYTHON] = write_wheel(tmp_path, PYTHON, packs=[manifest("python_code", "domain", PACK)])
    done = run("pack", "install", "--upgrade", PYTHON)
    assert done.code == 0
    assert site.pip.commands("install") == []
    assert f"{PYTHON} is already installed" in done.out


def test_remove_asks_and_uninstalls(run, site):
    done = run("pack", "remove", "python", terminal=True, stdin=b"n\n")
    assert (done.code, site.pip.asked) == (130, [])
    assert f"{PYTHON} goes, and with it: python_code" in done.err
    done = run("pack", "remove", "python", terminal=True, stdin=b"y\n")
    assert done.code == 0
    assert [words[-1] for words in site.pip.asked] == [PYTHON]
    assert run("pack", "remove", "python", "--yes").code == 0


def test_remove_without_anybody_to_ask_is_an_error(run, site):
    done = run("pack", "remove", "python")
    assert (done.code, site.pip.asked) == (1, [])
    assert "nobody is there to be asked; give --yes" in done.err


@pytest.mark.parametrize("name", ["tiny-base", "tiny-router", "general_chat", NANO])
def test_remove_leaves_the_residents(run, site, name):
    done = run("pack", "remove", name, "--yes", "--force")
    assert (done.code, site.pip.asked) == (1, [])
    assert "is always loaded" in done.err


def test_remove_names_who_needs_the_pack(run, site, tmp_path):
    needs = manifest("django", "domain", PACK).to_dict() | {"dependencies": [{"id": "python_code", "version": ""}]}
    add(site, write_pack(tmp_path / "site/django", Manifest.from_dict(needs)), "modularbase-pack-django")
    done = run("pack", "remove", "python", "--yes")
    assert (done.code, site.pip.asked) == (1, [])
    assert "other packs need what would go (django needs python_code)" in done.err
    assert run("pack", "remove", "python", "--yes", "--force").code == 0
    assert run("pack", "remove", "python", "django", "--yes").code == 0


def test_remove_takes_out_what_is_broken(run, site):
    site.catalog = replace(site.catalog, broken=(BrokenPlugin("bad", "modularbase-pack-bad", "ImportError"),))
    done = run("pack", "remove", "bad", "--yes")
    assert done.code == 0
    assert site.pip.asked[0][-1] == "modularbase-pack-bad"


def test_remove_deletes_weights_that_no_other_pack_uses(run, site, tmp_path):
    first, content = apart(tmp_path, site)
    path = store(tmp_path, first, content)
    apart(tmp_path, site, "second")  # the same weights
    run("pack", "remove", "apart", "--yes")
    assert path.exists()
    site.catalog = replace(site.catalog, packs=tuple(one for one in site.catalog.packs if one.id != "apart"))
    assert "of downloaded weights" in run("pack", "remove", "second", "--yes").out
    assert not path.exists()


def test_remove_that_pip_refuses_deletes_nothing(run, site, tmp_path):
    one, content = apart(tmp_path, site)
    path = store(tmp_path, one, content)
    site.pip.answers["uninstall"] = Outcome(1, "ERROR: Cannot uninstall\n")
    assert run("pack", "remove", "apart", "--yes").code == 1
    assert path.exists()


SETTINGS = "# mine\nslots = 3  # enough\n\n# and this\nthreads = 2\n"


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(SETTINGS)
    path.chmod(0o600)
    return path


def test_pins_are_written_beside_comments(run, site, settings):
    assert "pinned python_code in" in run("pack", "pin", "python", "--config", str(settings)).out
    text = settings.read_text()
    assert 'pins = ["python_code"]' in text
    assert text.startswith("# mine\nslots = 3  # enough\n\n# and this\nthreads = 2\n")
    assert settings.stat().st_mode & 0o777 == 0o600
    assert run("pack", "pin", "python_code", "--config", str(settings)).out == "python_code is pinned already\n"
    assert run("pack", "unpin", "python", "--config", str(settings)).out == "unpinned python_code\n"
    assert "pins = []" in settings.read_text()
    assert "is not pinned" in run("pack", "unpin", "python", "--config", str(settings)).err


def test_a_link_to_the_settings_stays_one(run, site, settings, tmp_path):
    link = tmp_path / "link.toml"
    link.symlink_to(settings)
    assert run("pack", "pin", "python", "--config", str(link)).code == 0
    assert link.is_symlink()
    assert "python_code" in settings.read_text()


def test_settings_that_are_not_there_are_begun(run, site, tmp_path):
    assert run("pack", "pin", "python").code == 0
    assert (tmp_path / "none.toml").read_text() == 'pins = ["python_code"]\n'


@pytest.mark.parametrize("name", ["tiny-base", "tiny-router", "general_chat"])
def test_what_is_always_loaded_is_not_pinned(run, site, name):
    assert "is always loaded; there is nothing to pin" in run("pack", "pin", name).err


def test_a_slot_stays_free_beside_the_pins(run, site, settings):
    settings.write_text("slots = 1\n")
    done = run("pack", "pin", "python", "--config", str(settings))
    assert done.code == 1
    assert "of 1 slots one must stay free" in done.err
    assert settings.read_text() == "slots = 1\n"


def test_remove_unpins(run, site, settings):
    run("pack", "pin", "python", "--config", str(settings))
    done = run("pack", "remove", "python", "--yes", "--config", str(settings))
    assert "unpinned python_code, which is gone" in done.out
    assert "pins = []" in settings.read_text()


def test_export_is_whole_and_overwrites_nothing(run, site, tmp_path):
    one, content = apart(tmp_path, site)
    store(tmp_path, one, content)
    out = tmp_path / "out"
    assert run("pack", "export", "apart", str(out)).code == 0
    assert (out / WEIGHTS_FILE).read_bytes() == content
    assert run("pack", "check", str(out)).code == 0
    done = run("pack", "export", "apart", str(out))
    assert done.code == 1
    assert "exists; name a folder that does not" in done.err


def test_export_of_a_damaged_pack_leaves_nothing(run, site, tmp_path):
    (site.directories["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "export", "python", str(tmp_path / "out"))
    assert done.code == 1
    assert "nothing was exported" in done.err
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def test_a_lock_is_restored_by_pip(run, site, tmp_path):
    lock = tmp_path / "packs.lock"
    assert run("pack", "lock", "--output", str(lock)).out == f"locked 4 packs of 2 distributions in {lock}\n"
    assert run("pack", "restore", str(lock)).out == f"everything is as {lock} says\n"
    assert site.pip.asked == []
    site.versions[PYTHON] = "2.0.0"
    done = run("pack", "restore", str(lock))
    assert done.code == 1  # this pip changes nothing
    assert f"differs: {PYTHON} is 2.0.0, locked is 1.0.0" in done.out
    assert [words[-1] for words in site.pip.commands("install")] == [f"{PYTHON}==1.0.0"]


def test_a_file_that_differs_is_installed_again(run, site, tmp_path):
    lock = tmp_path / "packs.lock"
    run("pack", "lock", "--output", str(lock))
    (site.directories["python_code"] / "examples.json").write_text('[{"prompt": "other"}]')
    done = run("pack", "restore", str(lock), "--json")
    assert json.loads(done.out)["differences"] == ["python_code/examples.json is another file than the locked one"]
    assert "--force-reinstall" in site.pip.commands("install")[-1]


def test_nothing_broken_is_locked(run, site, tmp_path):
    site.catalog = replace(site.catalog, broken=(BrokenPlugin("bad", "x", "ImportError"),))
    done = run("pack", "lock", "--output", str(tmp_path / "packs.lock"))
    assert done.code == 1
    assert not (tmp_path / "packs.lock").exists()


def test_pip_that_finds_nothing_for_a_lock_is_a_sentence(run, site, tmp_path):
    lock = tmp_path / "packs.lock"
    run("pack", "lock", "--output", str(lock))
    site.versions[PYTHON] = "2.0.0"
    site.pip.answers["install"] = Outcome(1, NOT_FOUND.format(f"{PYTHON}==1.0.0", "2.0.0"))
    assert f"no version fits {PYTHON}==1.0.0; there are 2.0.0" in run("pack", "restore", str(lock)).err
