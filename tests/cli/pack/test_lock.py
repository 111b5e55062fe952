"""`modularbase pack lock` and `restore` with a pip that only pretends."""

import json

from tiny_wheels import NOT_FOUND

from modularbase_core.packs.catalog import BrokenPlugin
from modularbase_core.packs.pip import Outcome


def test_a_lock_is_restored_by_pip(run, site, tmp_path):
    lock = tmp_path / "packs.lock"
    assert run("pack", "lock", "--output", str(lock)).out == f"locked 4 packs of 2 distributions in {lock}\n"
    assert run("pack", "restore", str(lock)).out == f"everything is as {lock} says\n"
    assert site.pip.asked == []
    site.versions[site.python] = "2.0.0"
    done = run("pack", "restore", str(lock))
    assert done.code == 1  # this pip changes nothing
    assert f"differs: {site.python} is 2.0.0, locked is 1.0.0" in done.out
    assert [words[-1] for words in site.pip.commands("install")] == [f"{site.python}==1.0.0"]


def test_a_file_that_differs_is_installed_again(run, site, tmp_path):
    lock = tmp_path / "packs.lock"
    run("pack", "lock", "--output", str(lock))
    (site.directories["python_code"] / "examples.json").write_text('[{"prompt": "other"}]')
    done = run("pack", "restore", str(lock), "--json")
    assert json.loads(done.out)["differences"] == ["python_code/examples.json is another file than the locked one"]
    assert "--force-reinstall" in site.pip.commands("install")[-1]


def test_nothing_broken_is_locked(run, site, tmp_path):
    site.add_broken(BrokenPlugin("bad", "x", "ImportError"))
    done = run("pack", "lock", "--output", str(tmp_path / "packs.lock"))
    assert done.code == 1
    assert not (tmp_path / "packs.lock").exists()


def test_pip_that_finds_nothing_for_a_lock_is_a_sentence(run, site, tmp_path):
    lock = tmp_path / "packs.lock"
    run("pack", "lock", "--output", str(lock))
    site.versions[site.python] = "2.0.0"
    site.pip.answers["install"] = Outcome(1, NOT_FOUND.format(f"{site.python}==1.0.0", "2.0.0"))
    assert f"no version fits {site.python}==1.0.0; there are 2.0.0" in run("pack", "restore", str(lock)).err
