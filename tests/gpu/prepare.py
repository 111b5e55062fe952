"""Gather what a bare GPU machine lacks: packages for its Python, TVM without its compiler, compiled artefacts.

Decides what travels, and that it stays small enough to. Packages are those that the project declares, in the versions
installed here, unpacked, so that nothing has to be installed there.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gpu.sets import ROOT, SETS, builds_of
from packaging.requirements import Requirement

from modularbase_core.device.artefact import artefact_directory, ensure_artefacts, source_digest, tvm_version
from modularbase_core.device.target import cuda_target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHON: Final = "3.12"
MOST_BYTES: Final = 60_000_000
"""What may travel, packed as it is."""
_TVM: Final = "apache-tvm"
_THERE: Final = ("numpy", _TVM, "huggingface-hub")
"""Not fetched: numpy is there, TVM is copied, and the hub's client only downloads tokenizers."""
_LEFT_OUT: Final = ("libtvm_compiler.so", "3rdparty", "src", "include", "lib64", "__pycache__")


def prepare(folder: Path, gpus: tuple[str, ...], sets: Sequence[str], precisions: Sequence[str]) -> int:
    """Fill `folder`; exit code 1 when it holds too much to travel. What is there already is kept."""
    site = folder / "site"
    names = packages(project_requirements())
    said = "\n".join(sorted(f"{name}=={version}" for name, version in names.items()))
    if not (site / "packages.txt").is_file() or (site / "packages.txt").read_text() != said:
        shutil.rmtree(site, ignore_errors=True)
        fetch(names, site)
        copy_runtime(site)
        (site / "packages.txt").write_text(said)
    told = {name: {one: compile_set(folder, name, one, gpus) for one in precisions} for name in sets}
    prepared = {"python": PYTHON, "gpus": gpus, "tvm": tvm_version(), "sources": source_digest(), "sets": told}
    (folder / "prepared.json").write_text(json.dumps(prepared, indent=1))
    remove_others(folder, gpus, told)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB, {len(names)} packages and TVM's runtime for Python {PYTHON}")
    if size > MOST_BYTES:
        print(f"that is more than {MOST_BYTES / 1e6:.0f} MB; take fewer --sets or --precisions, or one --gpu")
        return 1
    return 0


def project_requirements() -> list[str]:
    """Return what the project depends on, as it declares it."""
    declared: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return declared


def packages(requirements: Sequence[str]) -> dict[str, str]:
    """Return the versions installed here of what these need on that Python, and of what those need."""
    found: dict[str, str] = {}
    open_ = [Requirement(text) for text in [*requirements, *(importlib.metadata.requires(_TVM) or ())]]
    there = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
    while open_:
        one = open_.pop()
        name = one.name.lower().replace("_", "-")
        if name in found or name in _THERE or (one.marker and not one.marker.evaluate(there)):
            continue
        found[name] = importlib.metadata.version(name)
        open_ += [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    return found


def fetch(names: dict[str, str], site: Path) -> None:
    """Download wheels and unpack them side by side."""
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", PYTHON, "--dest", scratch]
        subprocess.run([*command, *(f"{name}=={version}" for name, version in names.items())], check=True)
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)


def copy_runtime(site: Path) -> None:
    """Copy the installed TVM, which is the same for every Python, without its compiler."""
    distribution = importlib.metadata.distribution(_TVM)
    root = Path(str(distribution.locate_file("")))
    for name in ("tvm", f"{_TVM.replace('-', '_')}-{distribution.version}.dist-info"):
        shutil.copytree(root / name, site / name, ignore=shutil.ignore_patterns(*_LEFT_OUT))


def compile_set(folder: Path, name: str, precision: str, gpus: tuple[str, ...]) -> str:
    """Compile what a set needs in a precision; return "ok", or why there is nothing to compile."""
    builds = builds_of(SETS[name](), cuda_target(gpus), precision)
    if isinstance(builds, str):
        print(f"{name} {precision}: left out, {builds}")
        return builds
    begun = time.monotonic()
    ensure_artefacts(builds, folder / "cache")
    print(f"{name} {precision}: {len(builds)} networks for {', '.join(gpus)}, {time.monotonic() - begun:.0f} s")
    return "ok"


def remove_others(folder: Path, gpus: tuple[str, ...], told: dict[str, dict[str, str]]) -> None:
    """Remove artefacts that were made of other sources or for other GPUs."""
    wanted = set()
    for name, precisions in told.items():
        for precision, said in precisions.items():
            builds = builds_of(SETS[name](), cuda_target(gpus), precision)
            if said == "ok" and not isinstance(builds, str):
                wanted |= {artefact_directory(build, folder / "cache") for build in builds}
    for path in (folder / "cache" / "artefacts").iterdir():
        if path not in wanted:
            shutil.rmtree(path)
