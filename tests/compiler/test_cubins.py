"""Proof of GPU code: reading ELF images, and a real cross-compilation where the CUDA wheels are installed."""

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from modularbase_compiler.cubins import check_cubins, cubins

from modularbase_core.device.metadata import read_meta
from modularbase_core.errors import ArtefactError
from modularbase_core.sdk.architecture import Blocks, PackArchitecture, Window, architecture_to_dict

TINY = PackArchitecture(
    base_hidden_size=32,
    blocks=Blocks(hidden_size=32, heads=1, kv_heads=1, head_size=32, ffn_size=32),
    layers=1,
    window=Window(trained_tokens=64, block_tokens=16, recent_tokens=16, sink_tokens=16),
)


def elf(machine, flags, abi):
    header = bytearray(64)
    header[:9] = b"\x7fELF\x02\x01\x01\x33" + bytes([abi])
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<I", header, 48, flags)
    return bytes(header)


def test_cubins_are_found_anywhere_in_a_file_by_both_abi_versions(tmp_path):
    path = tmp_path / "module.so"
    host = elf(62, 0, 0)
    path.write_bytes(host + b"text" + elf(190, 86 << 8 | 2, 8) + bytes(100) + elf(190, 75, 7) + b"\x7fELF\x02\x01")
    assert cubins(path) == ("sm_86", "sm_75")


def test_a_module_without_gpu_code_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "module-sm_86.so"
    path.write_bytes(elf(62, 0, 0) + b"__global__ void source()")
    with pytest.raises(ArtefactError, match=r"GPU code for sm_86 and holds none; .*modularbase\[cuda\]"):
        check_cubins(path, "sm_86")
    path.write_bytes(elf(190, 75 << 8, 8))
    with pytest.raises(ArtefactError, match="holds sm_75"):
        check_cubins(path, "sm_86")


PLUGINS = Path(__file__).parents[2] / "plugins_example"
NANO = {
    "base": PLUGINS / "modularbase-nano/modularbase_nano/base/manifest.json",
    "pack": PLUGINS / "modularbase-pack-python/modularbase_pack_python/python_code/manifest.json",
}
needs_cuda = pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="needs the extra `cuda`")


def compile_for(tmp_path, *gpus, precision="float16", architecture=None):
    if architecture is None:
        architecture = tmp_path / "tiny.json"
        architecture.write_text(json.dumps(architecture_to_dict(TINY)))
    command = [sys.executable, "-m", "modularbase_compiler", "--target", "cuda", "--gpu", *gpus]
    command += ["--precision", precision, "--architecture", str(architecture), "--out", str(tmp_path / "out")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def layouts(meta):
    return {item.layout for program in meta.programs.values() for item in program.parameters}


@needs_cuda
def test_a_tiny_pack_compiles_to_real_cubins_without_a_gpu(tmp_path):
    done = compile_for(tmp_path, "sm_75", "sm_90")
    assert done.returncode == 0, done.stderr
    assert "module-sm_75.so: sm_75" in done.stdout
    (place,) = (tmp_path / "out").iterdir()
    meta = read_meta(place)
    assert dict(meta.modules) == {"sm_75": "module-sm_75.so", "sm_90": "module-sm_90.so"}
    for architecture, name in meta.modules.items():
        assert set(cubins(place / name)) == {architecture}
    assert {item.dtype for item in meta.programs["run"].parameters} == {"float16"}
    assert {item.layout for item in meta.programs["run"].parameters} == {"row"}
    assert meta.target.level in ("x86-64-v3", "generic")  # not this processor's own features


@needs_cuda
def test_a_tiny_quantised_pack_compiles_as_well(tmp_path):
    done = compile_for(tmp_path, "sm_75", precision="int4")
    assert done.returncode == 0, done.stderr
    (place,) = (tmp_path / "out").iterdir()
    assert set(cubins(place / "module-sm_75.so")) == {"sm_75"}
    assert layouts(read_meta(place)) == {"row", "t32q4"}


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [("base", "int8"), ("pack", "int8"), ("pack", "int4")])
def test_the_nano_networks_compile_with_quantised_weights(tmp_path, kind, precision):
    done = compile_for(tmp_path, "sm_75", "sm_90", precision=precision, architecture=NANO[kind])
    assert done.returncode == 0, done.stderr
    (place,) = (tmp_path / "out").iterdir()
    meta = read_meta(place)
    assert meta.precision == precision
    assert layouts(meta) == {"row", f"t32q{precision[3:]}"}
    for architecture, name in meta.modules.items():
        assert set(cubins(place / name)) == {architecture}


@pytest.mark.skipif(importlib.util.find_spec("cuda") is not None, reason="needs the extra `cuda` to be absent")
def test_without_the_cuda_wheels_the_error_says_what_to_install(tmp_path):
    done = compile_for(tmp_path, "sm_86")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("run `pip install 'modularbase[cuda]'`")
    assert not (tmp_path / "out").exists()
