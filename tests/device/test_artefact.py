"""Artefact keys, checks and the child that builds; a stand-in compiler keeps these quick."""

import pytest
from tiny_packs import BASE, PACK

from modularbase_core.device import artefact
from modularbase_core.device.artefact import Build, check_artefact, ensure_artefacts, list_artefacts, plan_build
from modularbase_core.device.metadata import ArtefactMeta, InputMeta, ParameterMeta, ProgramMeta, read_meta
from modularbase_core.device.target import cpu_target, cuda_target
from modularbase_core.errors import ArtefactError
from modularbase_core.sdk.architecture import RouterArchitecture
from modularbase_core.sdk.files import file_sha256

ROUTER = RouterArchitecture(base_hidden_size=64, width=32, key_size=16)
BUILD = Build(architecture=ROUTER, target=cpu_target(), dtype="float32")

CHILD = """
import json, pathlib, shutil, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
print("a library's own print")
print(json.dumps({"phase": "lower", "done": 1, "total": 2}), flush=True)
"""


def write_artefact(folder, build=BUILD):
    """Write what a compiler would: any bytes do for a module here."""
    place = folder / build.key
    place.mkdir(parents=True, exist_ok=True)
    (place / "module.so").write_bytes(b"code")
    program = ProgramMeta(
        (InputMeta("hidden", "float32", ("T", 64), False),),
        (ParameterMeta("norm.weight", "float32", (64,), "row"),),
        1,
        4096,
    )
    meta = ArtefactMeta(
        key=build.key,
        architecture=build.architecture,
        target=build.target,
        dtype=build.dtype,
        precision=build.precision,
        tvm="0",
        page_tokens=16,
        limits={"T": 512},
        workspace_bytes=4096,
        modules={"cpu": "module.so"},
        sha256={"module.so": file_sha256(place / "module.so")},
        programs={"route": program},
    )
    (place / "meta.json").write_text(meta.to_json())
    return place


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Replace the compiler by a script that ends with the lines given."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))  # for the child
    monkeypatch.syspath_prepend(folder)  # for the digest of its sources
    monkeypatch.setattr(artefact, "COMPILER", "stand_in_compiler")
    artefact.source_digest.cache_clear()
    source = folder / "stand_in_compiler.py"
    source.write_text(CHILD)

    def install(body):
        source.write_text(CHILD + body)
        artefact.source_digest.cache_clear()

    yield install
    artefact.source_digest.cache_clear()


@pytest.fixture
def built(compiler, tmp_path):
    """A compiler that "builds" by copying, and what it is asked for."""
    ready = tmp_path / "ready"
    compiler(f"shutil.copytree({str(ready)!r}, out, dirs_exist_ok=True)\n")
    write_artefact(ready)
    return tmp_path / "cache"


def test_metadata_survives_being_written(tmp_path):
    meta = read_meta(write_artefact(tmp_path))
    assert read_meta(write_artefact(tmp_path)) == meta
    assert meta.programs["route"].inputs[0].shape == ("T", 64)


def test_packed_parameters_tell_their_stored_shape():
    assert ParameterMeta("w", "float32", (50, 8), "n32k").stored_shape == (2, 8, 32)
    assert ParameterMeta("w", "float32", (50, 8), "row").stored_shape == (50, 8)


@pytest.mark.parametrize("target", [cpu_target(), cuda_target()])
def test_a_base_is_float16_and_a_pack_int8_unless_told_otherwise(target):
    auto = {"base": "auto", "pack": "auto"}
    assert plan_build(BASE, target, auto).precision == "float16"
    assert plan_build(PACK, target, auto).precision == "int8"
    assert plan_build(ROUTER, target, auto).precision == "float32"
    for precision in ("float16", "int8", "int4"):
        build = plan_build(PACK, target, {"pack": precision})
        assert (build.dtype, build.precision) == (target.dtype, precision)


def test_a_precision_without_kernels_is_refused_with_those_that_have_some():
    with pytest.raises(ArtefactError, match="cuda has kernels for float16, int8, int4, not for float32"):
        plan_build(PACK, cuda_target(), {"pack": "float32"})


@pytest.mark.parametrize(
    "other",
    [
        {"architecture": RouterArchitecture(base_hidden_size=64, width=32, key_size=17)},
        {"target": cuda_target()},
        {"dtype": "float16"},
        {"precision": "int8"},
    ],
)
def test_the_key_depends_on_every_part_of_a_build(other):
    parts = {"architecture": ROUTER, "target": BUILD.target, "dtype": "float32", "precision": "float32"}
    assert Build(**parts).key == BUILD.key
    assert Build(**{**parts, **other}).key != BUILD.key


def test_the_key_changes_with_the_compilers_sources_and_tvm(compiler, monkeypatch):
    before = BUILD.key
    compiler("# changed\n")
    changed = BUILD.key
    assert changed != before
    monkeypatch.setattr(artefact, "tvm_version", lambda: "1.0")
    assert BUILD.key != changed


def test_a_missing_artefact_is_built_and_progress_told_and_then_it_is_kept(built):
    told = []
    (place,) = ensure_artefacts([BUILD], built, lambda *event: told.append(event))
    assert check_artefact(place).architecture == ROUTER
    assert told == [("lower", 1, 2)]
    told.clear()
    assert ensure_artefacts([BUILD], built, lambda *event: told.append(event)) == [place]
    assert told == []


@pytest.mark.parametrize("harm", ["module.so", "meta.json", "missing"])
def test_a_corrupt_artefact_is_built_again(built, harm):
    (place,) = ensure_artefacts([BUILD], built)
    if harm == "missing":
        (place / "module.so").unlink()
    else:
        (place / harm).write_bytes(b"{")
    with pytest.raises(ArtefactError, match="again"):
        check_artefact(place)
    told = []
    ensure_artefacts([BUILD], built, lambda *event: told.append(event))
    assert told
    check_artefact(place)


def test_an_artefact_under_a_foreign_name_is_refused(tmp_path):
    place = write_artefact(tmp_path)
    with pytest.raises(ArtefactError, match="remove it"):
        check_artefact(place.rename(tmp_path / ("0" * 64)))


def test_the_childs_error_is_ours_in_one_sentence(compiler, tmp_path):
    compiler("print(json.dumps({'error': 'no space left; free some'}))\nsys.exit(1)\n")
    with pytest.raises(ArtefactError, match=r"^no space left; free some$"):
        ensure_artefacts([BUILD], tmp_path / "cache")


def test_a_child_that_dies_is_told_with_its_last_words(compiler, tmp_path):
    compiler("raise ValueError('unforeseen')\n")
    with pytest.raises(ArtefactError, match="exit code 1: ValueError: unforeseen"):
        ensure_artefacts([BUILD], tmp_path / "cache")


def test_what_a_dying_child_left_half_written_is_removed(compiler, tmp_path):
    body = "import os\n(out / f'.building-{os.getpid()}-x').mkdir()\n(out / '.building-1-other').mkdir()\n"
    compiler(body + "sys.exit('LLVM ERROR: IO failure on output stream: No space left on device')\n")
    with pytest.raises(ArtefactError, match=r"cannot write .*No space left on device\); free space in"):
        ensure_artefacts([BUILD], tmp_path / "cache")
    assert [item.name for item in (tmp_path / "cache" / "artefacts").iterdir()] == [".building-1-other"]


def test_an_interrupted_build_ends_its_child(compiler, tmp_path):
    compiler("import time\ntime.sleep(60)\n")

    def interrupt(*event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_artefacts([BUILD], tmp_path / "cache", interrupt)


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="set MODULARBASE_CACHE"):
        ensure_artefacts([BUILD], tmp_path / "file")


def test_listing_shows_sound_and_broken_artefacts_alike(tmp_path):
    folder = tmp_path / "artefacts"
    place = write_artefact(folder)
    (folder / "zz").mkdir()
    (folder / ".building-x").mkdir()
    (path, meta), (broken, error) = list_artefacts(tmp_path)
    assert (path, meta.key) == (place, BUILD.key)
    assert broken.name == "zz"
    assert isinstance(error, ArtefactError)
    assert list_artefacts(tmp_path / "absent") == []
