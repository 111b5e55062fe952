"""`modularbase pack verify` and the takeover after an installation, by the real engine on tiny packs."""

import json

import pytest
from tiny_packs import catalog_of, write_tiny_set

from modularbase_core.sdk.manifest import WEIGHTS_FILE


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Install the tiny set; return its directories."""
    directories = write_tiny_set(tmp_path / "site")
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of(directories))
    return directories


def test_each_pack_answers_and_a_damaged_one_stops_no_other(run, site, cache):
    done = run("pack", "verify", "--json", "--quiet", "--cache", str(cache))
    assert done.code == 0, done.out
    packs = {one["id"]: one for one in json.loads(done.out)["packs"]}
    assert [packs[id]["ran"] for id in ("tiny-base", "tiny-router", "general_chat", "python_code")] == [True] * 4

    (site["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "verify", "--quiet", "--cache", str(cache))
    assert done.code == 1
    states = {line.split()[0]: line.split()[2:] for line in done.out.splitlines()[:4]}
    assert states["general_chat"] == ["files", "sound", "answers"]
    assert states["python_code"] == ["FILES", "UNSOUND"]


def test_nothing_answers_without_its_base(run, site, cache):
    (site["tiny-base"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "verify", "python", "--quiet", "--cache", str(cache))
    assert done.code == 1
    assert "CANNOT ANSWER" in done.out
