"""A graph in a file: the same module, small, and refused when it is not whole."""

import lzma

import pytest
import tvm
from modularbase_compiler.export import export_graph
from modularbase_compiler.kernels import family_of
from modularbase_compiler.portable import read_graph

from modularbase_core.errors import ArtefactError
from tests.compiler.conftest import TINY


def exported(name, precision="float32", target="cpu", dtype="float32"):
    return export_graph(TINY[name], family_of(target, dtype), dtype, precision)


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_graph_comes_back_from_its_file_as_it_was(tmp_path, name, precision):
    graph = exported(name, precision)
    (tmp_path / "graph").write_bytes(graph.to_bytes(TINY[name]))
    again = read_graph(tmp_path / "graph", TINY[name])
    assert again.programs == graph.programs
    tvm.ir.assert_structural_equal(again.module, graph.module)


def test_a_file_holds_no_table_of_angles_and_is_small():
    assert len(exported("base").to_bytes(TINY["base"])) < 16 << 10  # a table has 64 KiB


def test_a_router_for_a_gpu_keeps_its_float32():
    graph = exported("lexicon", target="cuda", dtype="float16")
    assert {item.dtype for item in graph.programs["route"].parameters} == {"float32"}


@pytest.mark.parametrize("content", [b"", b"no archive", lzma.compress(b"[]"), lzma.compress(b'{"programs": {}}')])
def test_what_is_no_graph_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "graph").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"cannot be read \(.*\); install its pack again"):
        read_graph(tmp_path / "graph", TINY["pack"])


def test_half_a_graph_is_refused(tmp_path):
    content = exported("router").to_bytes(TINY["router"])
    (tmp_path / "graph").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtefactError, match="cut short"):
        read_graph(tmp_path / "graph", TINY["router"])
