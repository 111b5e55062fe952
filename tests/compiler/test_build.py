"""Building: static memory, atomic writing, two builders at once, full disks."""

import errno
import os
import threading
from pathlib import Path

import pytest
from modularbase_compiler import build as building
from modularbase_compiler.__main__ import main
from modularbase_compiler.build import build_artefact, storage_bytes
from modularbase_compiler.export import export_graph
from modularbase_compiler.kernels import family_of
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.pipeline import lower
from modularbase_compiler.requests import with_kernels
from modularbase_compiler.target import host_target

from modularbase_core.device.artefact import BUILDING_PREFIX, Build, check_artefact
from modularbase_core.device.target import Target, cpu_target
from modularbase_core.errors import ArtefactError
from tests.compiler.conftest import TINY

FAMILY = family_of("cpu", "float32")
ROUTER = Build(architecture=TINY["router"], target=cpu_target(), dtype="float32")


def nothing(phase):
    pass


@pytest.fixture(scope="module")
def lowered():
    target = cpu_target()
    graph = export_graph(TINY["base"], FAMILY, "float32")
    return graph.programs, lower(with_kernels(graph.module, CpuKernels(target.level)), host_target(target))


def test_no_allocation_is_dynamic_results_included(lowered):
    programs, module = lowered
    for name in programs:
        assert storage_bytes(module[name]), name  # raises on a symbolic size


def test_kernels_of_equal_layers_are_one(lowered):
    _, module = lowered
    names = [name.name_hint for name in module.get_global_vars()]
    assert sum(name.startswith("attend") for name in names) == 2  # understanding has two layers, fusion one
    assert sum(name.startswith("rms_norm") for name in names) == 1


def test_residuals_and_swiglu_are_swallowed_by_kernels(lowered):
    _, module = lowered
    text = module["understand"].script()
    assert text.count("swiglu") == 2
    assert text.count("_add(") == 4
    assert "silu" not in text
    assert "chunk" not in text
    assert "split" not in text


@pytest.mark.parametrize(("name", "kernel"), [("pack", "geglu_80"), ("gelu", "gelu_48")])
def test_gelu_with_and_without_a_gate_has_a_kernel(name, kernel):
    text = export_graph(TINY[name], FAMILY, "float32").module.script()
    assert f"cls.{kernel}," in text
    assert "R.nn.gelu" not in text


def test_a_tied_embedding_is_by_rows_to_look_up_and_packed_to_make_logits(lowered):
    programs, _ = lowered
    layouts = {name: {item.name: item.layout for item in programs[name].parameters} for name in ("understand", "fuse")}
    assert layouts["understand"]["embedding.weight"] == "row"
    assert layouts["fuse"]["embedding.weight"] == "n32k"
    assert layouts["fuse"]["norm.weight"] == "row"
    assert not any(name.startswith("understanding.") for name in layouts["fuse"])


def test_metadata_tells_the_workspace_and_the_limits(artefacts):
    meta = check_artefact(artefacts["base"])
    largest = max(item.workspace_bytes for item in meta.programs.values())
    assert largest <= meta.workspace_bytes <= sum(item.workspace_bytes for item in meta.programs.values())
    assert meta.limits == {"T": 512, "B": 32, "R": 64, "M": 16}


def test_two_builders_at_once_leave_one_sound_artefact(tmp_path, artefacts, monkeypatch):
    source = artefacts["router"]
    barrier = threading.Barrier(2)

    def copy(build, scratch, step):
        for item in source.iterdir():
            (scratch / item.name).write_bytes(item.read_bytes())
        barrier.wait(10)

    monkeypatch.setattr(building, "_build_into", copy)
    workers = [threading.Thread(target=build_artefact, args=(ROUTER, tmp_path, nothing)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [item.name for item in tmp_path.iterdir()] == [ROUTER.key]
    check_artefact(tmp_path / ROUTER.key)


def test_a_corrupt_artefact_in_the_way_is_replaced(tmp_path, artefacts, monkeypatch):
    def copy(build, scratch, step):
        for item in artefacts["router"].iterdir():
            (scratch / item.name).write_bytes(item.read_bytes())

    monkeypatch.setattr(building, "_build_into", copy)
    place = tmp_path / ROUTER.key
    place.mkdir()
    (place / "meta.json").write_text("{")
    build_artefact(ROUTER, tmp_path, nothing)
    check_artefact(place)
    assert [item.name for item in tmp_path.iterdir()] == [ROUTER.key]


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def fill(build, scratch, step):
        (scratch / "module.so").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building, "_build_into", fill)
    with pytest.raises(ArtefactError, match=r"No space left on device\); free space"):
        build_artefact(ROUTER, tmp_path, nothing)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupt(build, scratch, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "_build_into", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_artefact(ROUTER, tmp_path, nothing)
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(BUILDING_PREFIX)]


def test_a_linker_that_fails_is_told_in_a_sentence(tmp_path):
    class Failing:
        def export_library(self, path):
            raise RuntimeError("Compilation error:\nld: final link failed: No space left on device")

    with pytest.raises(ArtefactError, match=r"No space left on device\); free space there"):
        building._link(Failing(), tmp_path / "module.so")


def test_what_killed_builders_left_is_swept_after_a_day(tmp_path):
    old, new = tmp_path / f"{BUILDING_PREFIX}old", tmp_path / f"{BUILDING_PREFIX}new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    building._sweep(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_a_request_that_cannot_be_read_is_one_json_line(tmp_path: Path, capsys):
    assert main(["--request", str(tmp_path / "absent"), "--out", str(tmp_path), "--json"]) == 1
    out = capsys.readouterr().out
    assert out.startswith('{"error": ')
    assert out.count("\n") == 1


def test_an_unknown_system_is_told_in_a_sentence():
    target = Target(name="cpu", system="plan9", machine="x86_64", level="generic")
    with pytest.raises(ArtefactError, match="'plan9'; use one of linux"):
        host_target(target)
