"""`modularbase pack verify` and `check`, without and with the real engine."""

import json

import pytest
from tiny_packs import catalog_of, write_tiny_set

from modularbase_core.errors import ArtefactError
from modularbase_core.packs.catalog import BrokenPlugin
from modularbase_core.sdk.manifest import WEIGHTS_FILE


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
