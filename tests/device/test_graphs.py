"""Which graph fits a build, by its name alone, and keeping a folder of them."""

from dataclasses import replace

import pytest

from modularbase_core.device import graphs
from modularbase_core.device.artefact import Build
from modularbase_core.device.graphs import find_graph, graph_name, missing_graphs, shipped_builds, write_graphs
from modularbase_core.device.target import cpu_target, cuda_target
from modularbase_core.errors import ArtefactError
from modularbase_core.sdk.architecture import Blocks, PackArchitecture, RouterArchitecture

ROUTER = RouterArchitecture(base_hidden_size=64, width=32, key_size=16)
PACK = PackArchitecture(
    base_hidden_size=64, blocks=Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64), layers=1
)
BUILD = Build(architecture=ROUTER, target=cpu_target(), dtype="float32")


@pytest.mark.parametrize(
    "other",
    [
        {"architecture": RouterArchitecture(base_hidden_size=64, width=32, key_size=17)},
        {"target": cuda_target()},
        {"dtype": "float16"},
        {"precision": "int8"},
    ],
)
def test_a_graph_fits_one_network_dtype_precision_and_kind_of_target(other):
    assert graph_name(replace(BUILD, **other)) != graph_name(BUILD)


def test_a_graph_fits_every_processor_and_every_gpu():
    assert graph_name(replace(BUILD, target=replace(BUILD.target, level="generic", features=()))) == graph_name(BUILD)
    one, all_of_them = (replace(BUILD, target=target) for target in (cuda_target(("sm_86",)), cuda_target()))
    assert graph_name(one) == graph_name(all_of_them)


def test_a_graph_of_other_sources_or_of_another_tvm_does_not_fit(monkeypatch):
    before = graph_name(BUILD)
    monkeypatch.setattr(graphs, "tvm_version", lambda: "0.28.0")
    other_tvm = graph_name(BUILD)
    monkeypatch.setattr(graphs, "graph_sources", lambda: "changed")
    assert len({before, other_tvm, graph_name(BUILD)}) == 3


def test_the_first_folder_that_has_it_gives_the_graph(tmp_path):
    folders = tuple(tmp_path / name for name in ("absent", "empty", "one", "two"))
    for folder in folders[1:]:
        folder.mkdir()
    build = replace(BUILD, graphs=folders)
    assert find_graph(build) is None
    for folder in folders[2:]:
        (folder / graph_name(BUILD)).touch()
    assert find_graph(build) == tmp_path / "one" / graph_name(BUILD)
    assert build == BUILD  # what is compiled is the same
    assert build.key == BUILD.key


def test_a_pack_brings_a_graph_of_each_precision_and_a_router_of_its_only_one():
    told = [(build.target.name, build.precision) for build in shipped_builds(PACK)]
    assert told == [
        *(("cpu", one) for one in ("float32", "float16", "int8", "int4")),
        *(("cuda", one) for one in ("float16", "int8", "int4")),
    ]
    assert [(build.target.name, build.precision) for build in shipped_builds(ROUTER)] == [
        ("cpu", "float32"),
        ("cuda", "float32"),
    ]


@pytest.fixture
def made(monkeypatch):
    """Let a stand-in write the graphs, and tell which were asked for."""
    asked = []

    def write(builds, folder, progress, *options):
        assert options == ("--graphs",)
        for build in builds:
            asked.append(build)
            (folder / graph_name(build)).write_text(build.precision)

    monkeypatch.setattr(graphs, "run_compiler", write)
    return asked


def test_what_is_missing_is_made_once_for_all_folders_and_what_no_longer_fits_goes(tmp_path, made):
    one, two = tmp_path / "one" / "graphs", tmp_path / "two" / "graphs"
    for folder in (one, two):
        folder.mkdir(parents=True)
        (folder / "0123.json.xz").touch()
        (folder / "README.md").touch()
    write_graphs({one: PACK, two: PACK})
    assert len(made) == 7
    names = {graph_name(build) for build in shipped_builds(PACK)}
    for folder in (one, two):
        assert {path.name for path in folder.iterdir()} == {*names, "README.md"}
        assert missing_graphs(folder, PACK) == []
    made.clear()
    next(one.glob("*.json.xz")).unlink()
    write_graphs({one: PACK, two: PACK})
    assert len(made) == 1


def test_without_torch_what_is_missing_is_one_sentence(tmp_path, made, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArtefactError, match=r"torch, which is not installed; run `pip install 'modularbase\[train\]'`"):
        write_graphs({tmp_path: ROUTER})
    assert made == []
