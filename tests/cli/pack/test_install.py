"""`modularbase pack install` with a pip that only pretends."""

import json
import re
from dataclasses import replace

import pytest
from tiny_packs import PACK, manifest, write_pack
from tiny_wheels import FakePip, write_wheel

from modularbase_core.errors import ArtefactError
from modularbase_core.sdk.manifest import WEIGHTS_FILE


def test_install_of_what_is_there_asks_pip_nothing(run, site):
    done = run("pack", "install", "python")
    assert (done.code, site.pip.asked) == (0, [])
    assert done.out == f"{site.python} is already installed; --upgrade looks for a newer version\n"


def test_install_mends_what_is_damaged(run, site, tmp_path):
    site.pip.offered[site.python] = write_wheel(tmp_path, site.python, packs=[manifest("python_code", "domain", PACK)])
    (site.directories["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    run("pack", "install", site.python, "--no-takeover")
    assert [words[-1] for words in site.pip.commands("install")] == [f"{site.python}==1.0.0"]


@pytest.fixture
def sql(site, tmp_path):
    """A wheel of another pack, which pip can get; once it is installed, it is there."""
    described = manifest("sql", "domain", PACK)
    site.pip.offered["modularbase-pack-sql"] = write_wheel(tmp_path, "modularbase-pack-sql", packs=[described])

    def arrive():
        site.add(write_pack(tmp_path / "site/sql", described), "modularbase-pack-sql")

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
    site.pip.offered[site.python] = write_wheel(tmp_path, site.python, packs=[manifest("python_code", "domain", PACK)])
    done = run("pack", "install", "--upgrade", site.python)
    assert done.code == 0
    assert site.pip.commands("install") == []
    assert f"{site.python} is already installed" in done.out
