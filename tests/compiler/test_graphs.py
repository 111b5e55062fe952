"""The road without torch: a pack's graph in place of an export, in a child that has no torch."""

from dataclasses import replace

import pytest
from modularbase_compiler.build import build_artefact

from modularbase_core.device.artefact import Build, check_artefact, ensure_artefacts
from modularbase_core.device.graphs import find_graph, write_graphs
from modularbase_core.device.target import cpu_target
from modularbase_core.errors import ArtefactError
from tests.compiler.conftest import TINY


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Folders of graphs, as packs bring them, by network."""
    root = tmp_path_factory.mktemp("graphs")
    folders = {name: root / name for name in ("gelu", "router")}
    write_graphs({folder: TINY[name] for name, folder in folders.items()})
    return folders


@pytest.fixture
def no_torch(tmp_path, monkeypatch):
    """Hide torch from every child process."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"), prepend=":")


@pytest.mark.parametrize(("name", "precision"), [("router", "float32"), ("gelu", "int8")])
def test_a_network_compiles_without_torch_to_what_it_is_with_it(name, precision, graphs, no_torch, tmp_path):
    build = Build(architecture=TINY[name], target=cpu_target(), dtype="float32", precision=precision)
    (place,) = ensure_artefacts([replace(build, graphs=(graphs[name],))], tmp_path / "cache")
    made = check_artefact(place)
    assert made.key == build.key
    if name == "router":  # this process has torch
        with_torch = check_artefact(build_artefact(build, tmp_path / "with", lambda phase: None))
        assert made == replace(with_torch, sha256=made.sha256)  # a linker's bytes may differ


def test_without_torch_and_without_a_graph_one_sentence_tells_what_is_missing(no_torch, tmp_path):
    build = Build(architecture=TINY["router"], target=cpu_target(), dtype="float32")
    told = (
        r"^no graph of this router in float32 for cpu came with the installed packs, and torch, which makes one, is "
        r"not installed; run `pip install 'modularbase\[train\]'`$"
    )
    with pytest.raises(ArtefactError, match=told):
        ensure_artefacts([build], tmp_path / "cache")


def test_without_torch_a_graph_that_is_not_whole_is_told_of(no_torch, graphs, tmp_path):
    build = Build(architecture=TINY["router"], target=cpu_target(), dtype="float32", graphs=(tmp_path,))
    whole = find_graph(replace(build, graphs=(graphs["router"],)))
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(ArtefactError, match=r"the graph .* cannot be read \(.*\); install its pack again"):
        ensure_artefacts([build], tmp_path / "cache")


def test_with_torch_a_graph_that_is_not_whole_is_no_hindrance(tmp_path, graphs):
    build = Build(architecture=TINY["router"], target=cpu_target(), dtype="float32", graphs=(tmp_path,))
    (tmp_path / find_graph(replace(build, graphs=(graphs["router"],))).name).write_bytes(b"")
    (place,) = ensure_artefacts([build], tmp_path / "cache")
    check_artefact(place)
