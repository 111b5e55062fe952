"""Weights repacked once: what is in the cache is used while it can be trusted, and never needed."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_packs import PACK, ROUTER, manifest, write_pack

from modularbase_core.device import repacked, weights
from modularbase_core.device.layouts import arrange, lay_out, layout_id, planned_bytes
from modularbase_core.device.metadata import ArtefactMeta, ParameterMeta, ProgramMeta
from modularbase_core.device.repacked import HEADER_BYTES, RepackedWeights
from modularbase_core.device.target import cpu_target
from modularbase_core.device.weights import WeightsFile, read_weights, write_weights
from modularbase_core.errors import WeightsError
from modularbase_core.sdk.architecture import Architecture
from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.parameters import parameter_shapes

Repacks = Callable[[], int]


def meta_of(dtype: str = "float32", reverse: bool = False, architecture: Architecture = PACK) -> ArtefactMeta:
    """Describe an artefact whose program takes every weight of a pack, the matrices in both layouts."""
    shapes = list(parameter_shapes(architecture).items())
    taken = [ParameterMeta(name, dtype, shape, "row") for name, shape in shapes]
    taken += [ParameterMeta(name, dtype, shape, "n32k") for name, shape in shapes if len(shape) == 2]
    program = ProgramMeta((), tuple(reversed(taken) if reverse else taken), 1, 0)
    return ArtefactMeta(
        key=f"{dtype}-{reverse}",
        architecture=architecture,
        target=cpu_target(),
        dtype=dtype,
        precision="float32",
        tvm="0",
        page_tokens=16,
        limits={},
        workspace_bytes=0,
        modules={},
        sha256={},
        programs={"run": program},
    )


META = meta_of()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "pack", manifest("pack", "domain", PACK))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights-repacked"


@pytest.fixture
def repacks(monkeypatch: pytest.MonkeyPatch) -> Repacks:
    """Count how often weights were read and converted."""
    seen: list[ArtefactMeta] = []

    def counted(meta, opened):
        seen.append(meta)
        return lay_out(meta, opened)

    monkeypatch.setattr(repacked, "lay_out", counted)
    return lambda: len(seen)


def digest(pack: Path) -> str:
    return Manifest.read(pack / "manifest.json").files["model.safetensors"]


def opened(folder: Path, pack: Path, meta: ArtefactMeta = META, host_cache_bytes: int = 1 << 30) -> np.ndarray:
    return RepackedWeights(folder, host_cache_bytes).open(pack / "model.safetensors", digest(pack), meta)


def expected(pack: Path, meta: ArtefactMeta = META) -> np.ndarray:
    return lay_out(meta, read_weights(pack / "model.safetensors", PACK))


def test_every_tensor_is_found_at_its_place_in_its_layout(pack: Path) -> None:
    held, body, offset = read_weights(pack / "model.safetensors", PACK), expected(pack), 0
    for parameter in META.programs["run"].parameters:
        values = arrange(held[parameter.name], parameter.layout)
        assert offset % 64 == 0
        assert body[offset : offset + values.nbytes].view(np.float32).tolist() == values.reshape(-1).tolist()
        offset += -(-values.nbytes // 64) * 64
    assert offset == body.size == planned_bytes(META)


def test_a_pack_is_repacked_once_and_then_mapped(folder: Path, pack: Path, repacks: Repacks) -> None:
    for _ in range(3):
        assert (opened(folder, pack) == expected(pack)).all()
    assert repacks() == 1
    (file,) = folder.glob("*.weights")
    assert file.stat().st_size == HEADER_BYTES + planned_bytes(META)
    assert file.name.startswith(digest(pack))


def test_the_mapping_is_held_between_swaps_within_its_bounds(folder: Path, pack: Path) -> None:
    both = RepackedWeights(folder, 2 * planned_bytes(META))
    first = both.open(pack / "model.safetensors", digest(pack), META)
    assert both.open(pack / "model.safetensors", digest(pack), META) is first
    for meta in (meta_of(reverse=True), meta_of("float16")):
        both.open(pack / "model.safetensors", digest(pack), meta)
    assert both.held_bytes <= 2 * planned_bytes(META)
    assert both.open(pack / "model.safetensors", digest(pack), META) is not first
    none = RepackedWeights(folder, 0)
    assert (none.open(pack / "model.safetensors", digest(pack), META) == first).all()
    assert none.held_bytes == 0


def test_what_is_asked_for_once_is_not_held(folder: Path, pack: Path) -> None:
    store = RepackedWeights(folder, 1 << 30)
    body = store.open(pack / "model.safetensors", digest(pack), META, keep=False)
    assert (body == expected(pack)).all()
    assert store.held_bytes == 0


def test_layouts_dtypes_and_orders_have_files_of_their_own(folder: Path, pack: Path) -> None:
    metas = [META, meta_of("float16"), meta_of(reverse=True)]
    assert len({layout_id(meta) for meta in metas}) == 3
    for meta in metas:
        assert (opened(folder, pack, meta) == expected(pack, meta)).all()
    assert len(list(folder.glob("*.weights"))) == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:100],
        lambda data: b"",
        lambda data: b"x" + data[1:],
        lambda data: data.replace(b"weights 1", b"weights 9", 1),
    ],
)
def test_a_damaged_file_is_made_again(folder: Path, pack: Path, repacks: Repacks, harm) -> None:
    opened(folder, pack)
    (file,) = folder.glob("*.weights")
    file.write_bytes(harm(file.read_bytes()))
    assert (opened(folder, pack) == expected(pack)).all()
    assert repacks() == 2
    assert file.stat().st_size == HEADER_BYTES + planned_bytes(META)


@pytest.mark.parametrize("text", ["", "[]", '{"sources": 3}', '{"sources": [["a"]]}', '{"sources": [["a", "b", "c"]]}'])
def test_without_a_readable_list_of_sources_the_digest_is_taken_again(
    folder: Path, pack: Path, repacks: Repacks, text: str
) -> None:
    opened(folder, pack)
    (sidecar,) = folder.glob("*.json")
    sidecar.write_text(text)
    assert (opened(folder, pack) == expected(pack)).all()
    assert repacks() == 1
    assert digest(pack) in sidecar.name
    assert str(pack) in sidecar.read_text()


def test_a_file_that_was_only_touched_or_copied_is_not_repacked(
    folder: Path, pack: Path, repacks: Repacks, tmp_path: Path
) -> None:
    opened(folder, pack)
    os.utime(pack / "model.safetensors", ns=(1, 1))
    opened(folder, pack)
    shutil.copytree(pack, tmp_path / "copy")
    opened(folder, tmp_path / "copy")
    assert repacks() == 1
    (sidecar,) = folder.glob("*.json")
    assert str(tmp_path / "copy") in sidecar.read_text()


def test_a_file_that_is_no_longer_the_manifests_is_refused(folder: Path, pack: Path) -> None:
    store = RepackedWeights(folder, 1 << 30)
    path, named = pack / "model.safetensors", digest(pack)
    store.open(path, named, META)
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(2, 2))
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the file that its manifest names"):
        store.open(path, named, META)


def test_a_pack_that_is_gone_is_refused_in_a_sentence(folder: Path, pack: Path) -> None:
    named = digest(pack)
    (pack / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        RepackedWeights(folder, 0).open(pack / "model.safetensors", named, META)


def test_weights_without_a_digest_are_made_in_memory(folder: Path, pack: Path) -> None:
    body = RepackedWeights(folder, 1 << 30).open(pack / "model.safetensors", None, META)
    assert (body == expected(pack)).all()
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_is_done_without_and_memory_serves(
    tmp_path: Path, pack: Path, repacks: Repacks
) -> None:
    (tmp_path / "file").write_text("")
    store = RepackedWeights(tmp_path / "file" / "weights-repacked", 1 << 30)
    for _ in range(2):
        assert (store.open(pack / "model.safetensors", digest(pack), META) == expected(pack)).all()
    assert repacks() == 1
    assert store.held_bytes == planned_bytes(META)


def test_a_full_disk_is_done_without(folder: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path, chunks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repacked, "write_atomically", full)
    assert (opened(folder, pack) == expected(pack)).all()
    assert not list(folder.glob("*"))


def test_writers_at_once_all_get_the_weights(folder: Path, pack: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        bodies = list(threads.map(lambda _: opened(folder, pack), range(4)))
    assert all((body == expected(pack)).all() for body in bodies)
    assert len(list(folder.iterdir())) == 2


def test_what_no_pack_needs_any_more_leaves_when_something_is_written(folder: Path, pack: Path, tmp_path: Path) -> None:
    old = write_pack(tmp_path / "old", manifest("old", "domain", PACK), seed=9)
    opened(folder, old)
    old_name = digest(old)
    shutil.rmtree(old)
    left = folder / ".left-by-a-killed-writer"
    left.write_text("")
    os.utime(left, (time.time() - 7200,) * 2)
    orphan = folder / "orphan.weights"
    orphan.write_text("")
    opened(folder, pack)
    names = {file.name for file in folder.iterdir()}
    assert not {name for name in names if name.startswith(old_name)}
    assert left.name not in names
    assert orphan.name in names, "another process may be about to say what it was made of"


def test_what_is_ready_is_known_without_making_it(folder: Path, pack: Path, repacks: Repacks) -> None:
    store = RepackedWeights(folder, 0)
    path, named = pack / "model.safetensors", digest(pack)
    assert not store.is_ready(path, named, META)
    store.open(path, named, META)
    assert store.is_ready(path, named, META)
    assert not store.is_ready(path, None, META)
    assert repacks() == 1


def test_rows_laid_out_one_block_after_the_other_are_as_all_at_once(pack: Path, monkeypatch) -> None:
    whole = expected(pack)
    monkeypatch.setattr(weights, "_AT_ONCE", 1)
    assert (lay_out(META, read_weights(pack / "model.safetensors", PACK)) == whole).all()
    assert (lay_out(META, WeightsFile(pack / "model.safetensors", parameter_shapes(PACK))) == whole).all()


@pytest.mark.parametrize("form", ["int8", "int4", "fp16"])
def test_repacking_takes_hardly_more_memory_than_the_result(tmp_path: Path, form: str) -> None:
    wide = replace(PACK, blocks=replace(PACK.blocks, hidden_size=1024, ffn_size=4096))
    values = {name: np.ones(shape, np.float32) for name, shape in parameter_shapes(wide).items()}
    write_weights(tmp_path / "w", values, form=form)
    del values
    meta = meta_of("float16", architecture=wide)
    tracemalloc.start()
    body = RepackedWeights(tmp_path / "cache", 0).open(tmp_path / "w", None, meta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - body.nbytes < 24 << 20  # the largest matrix alone is 32 MiB as float32


def test_a_file_of_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    router = write_pack(tmp_path / "router", manifest("router", "router", ROUTER))
    with pytest.raises(WeightsError):
        opened(folder, router)
    assert not list(folder.glob("*.weights"))
