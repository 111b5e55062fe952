"""`modularbase pack verify` and `check`, without and with the real engine."""

import json

import pytest
from tiny_packs import catalog_of, write_tiny_set

from modularbase_core.errors import ArtefactError
from modularbase_core.packs.catalog import BrokenPlugin
from modularbase_core.sdk.manifest import WEIGHTS_FILE


def test_verify_finds_the_one_that_is_damaged(run, site):
    done = run("pack", "verify", "--no-run")
    assert (done.code, done.err) == (0, "")
    (site.directories["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "verify", "--no-run", "--json")
    value = json.loads(done.out)
    assert (done.code, value["sound"]) == (1, False)
    assert [one["id"] for one in value["packs"] if one["fault"]] == ["python_code"]
    lines = run("pack", "verify", "--no-run").out.splitlines()
    assert [line.split()[2:] for line in lines[:4]].count(["FILES", "UNSOUND"]) == 1
    assert run("pack", "verify", "general_chat", "--no-run").code == 0


def test_verify_counts_broken_plugins_where_all_are_asked_for(run, site):
    site.add_broken(BrokenPlugin("bad", "x", "ImportError: nothing"))
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


def test_check_finds_the_one_pack_of_a_project_and_by_default_here(run, site, tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "module").mkdir(parents=True)
    site.directories["python_code"].rename(project / "module/python_code")
    assert run("pack", "check", str(project)).out.startswith("python_code 1.0.0 is sound")
    monkeypatch.chdir(project)
    assert run("pack", "check").out.startswith("python_code 1.0.0 is sound")
    (project / "module/python_code").rename(project / "python_code")
    assert run("pack", "check").err.startswith("error: . holds no pack, for it has no manifest.json")


@pytest.mark.parametrize("command", ["check", "build"])
def test_a_pack_without_data_is_to_be_started(run, tmp_path, command):
    data = tmp_path / "project/module/chess"
    data.mkdir(parents=True)
    (tmp_path / "project/pyproject.toml").touch()
    draft = {"schema": 1, "id": "chess", "name": "Chess", "version": "0.1.0", "base": "tiny-base", "licence": "MIT"}
    (data / "manifest.json").write_text(json.dumps(draft))
    (data / "examples.json").write_text("[]")
    done = run("pack", command, str(tmp_path / "project"))
    assert (done.code, done.err) == (1, f"error: {data} has no data yet; run `modularbase pack start {data}`\n")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Install the tiny set as it is; return its directories."""
    directories = write_tiny_set(tmp_path / "site")
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of(directories))
    return directories


def test_each_pack_answers_and_a_damaged_one_stops_no_other(run, tiny, cache):
    done = run("pack", "verify", "--json", "--quiet", "--cache", str(cache))
    assert done.code == 0, done.out
    packs = {one["id"]: one for one in json.loads(done.out)["packs"]}
    assert [packs[id]["ran"] for id in ("tiny-base", "tiny-router", "general_chat", "python_code")] == [True] * 4

    (tiny["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "verify", "--quiet", "--cache", str(cache))
    assert done.code == 1
    states = {line.split()[0]: line.split()[2:] for line in done.out.splitlines()[:4]}
    assert states["general_chat"] == ["files", "sound", "answers"]
    assert states["python_code"] == ["FILES", "UNSOUND"]


def test_nothing_answers_without_its_base(run, tiny, cache):
    (tiny["tiny-base"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "verify", "python", "--quiet", "--cache", str(cache))
    assert done.code == 1
    assert "CANNOT ANSWER" in done.out
