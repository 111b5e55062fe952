"""`modularbase pack graphs`, and where else graphs go; a stand-in makes them."""

import json
import shutil

import pytest

from modularbase_core.device.graphs import graph_name, shipped_builds
from modularbase_core.errors import ArtefactError


@pytest.fixture
def made(monkeypatch):
    """Let a stand-in make graphs; it tells for how many kinds of network it was asked."""
    kinds = []

    def write(builds, folder, progress, *options):
        kinds.append(sorted({build.architecture.kind for build in builds}))
        for build in builds:
            (folder / graph_name(build)).write_bytes(b"1234")

    monkeypatch.setattr("modularbase_core.device.graphs.run_compiler", write)
    return kinds


def test_every_pack_of_the_projects_gets_its_graphs_and_stays_sound(run, site, made, tmp_path):
    done = run("pack", "graphs", str(site.directories["python_code"]), str(site.directories["tiny-router"]), "--json")
    assert json.loads(done.out) == [
        {"id": "python_code", "graphs": 7, "bytes": 28},
        {"id": "tiny-router", "graphs": 2, "bytes": 8},
    ]
    assert made == [["pack", "router"]]
    assert run("pack", "check", str(site.directories["python_code"])).code == 0
    assert run("pack", "graphs", str(site.directories["python_code"])).out == "python_code: 7 graphs, 0 KB\n"
    assert len(made) == 1  # what is there is kept
    (tmp_path / "empty").mkdir()
    assert "holds no manifest.json" in run("pack", "graphs", str(tmp_path / "empty")).err


def test_export_takes_graphs_along(run, site, made, tmp_path):
    run("pack", "graphs", str(site.directories["python_code"]))
    assert run("pack", "export", "python_code", str(tmp_path / "out")).code == 0
    network = site.catalog.find("python_code").manifest.network
    held = {path.name for path in (tmp_path / "out" / "graphs").iterdir()}
    assert held == {graph_name(build) for build in shipped_builds(network)}


def test_other_files_among_the_graphs_are_refused(run, site, made):
    directory = site.directories["python_code"]
    (directory / "graphs").mkdir()
    (directory / "graphs" / "module.so").touch()
    assert "a pack is data" in run("pack", "check", str(directory)).err
    shutil.rmtree(directory / "graphs")
    (directory / "one.json.xz").touch()
    assert "is no file of a pack" in run("pack", "check", str(directory)).err


def test_what_stops_the_making_is_one_sentence(run, site, monkeypatch):
    def write(folders, progress):
        raise ArtefactError("torch is missing; install it")

    monkeypatch.setattr("modularbase_core.device.graphs.write_graphs", write)
    done = run("pack", "graphs", str(site.directories["python_code"]))
    assert (done.code, done.err) == (1, "error: torch is missing; install it\n")
