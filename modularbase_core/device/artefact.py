"""Artefacts in the cache: their content key, their checks, and the child process that builds a missing one.

The compiler is never imported here: it imports all of TVM and perhaps torch, a chat imports neither. It is run as
`python -m modularbase_compiler`, tells its progress in JSON lines, and renames what it built into place.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from modularbase_core.config import PRECISIONS
from modularbase_core.device.metadata import ArtefactMeta, read_meta
from modularbase_core.device.target import Target
from modularbase_core.errors import ArtefactError
from modularbase_core.sdk.architecture import Architecture, architecture_to_dict
from modularbase_core.sdk.files import file_sha256

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""

COMPILER: Final = "modularbase_compiler"
BUILDING_PREFIX: Final = ".building-"

_DEFAULTS: Final = {"base": "float16", "pack": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What to compile: one architecture for one target. dtype: of what is computed; precision: of the weights.

    graphs: folders of portable graphs, of which one may spare torch; the compiled bytes do not depend on them.
    """

    architecture: Architecture
    target: Target
    dtype: str
    precision: str = "float32"
    graphs: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def key(self) -> str:
        """Hash everything that the compiled bytes depend on: 64 hex digits."""
        parts = {
            "architecture": architecture_to_dict(self.architecture),
            "target": self.target.to_dict(),
            "dtype": self.dtype,
            "precision": self.precision,
            "tvm": tvm_version(),
            "sources": source_digest(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plan_build(
    architecture: Architecture, target: Target, precisions: Mapping[str, str], graphs: Iterable[Path] = ()
) -> Build:
    """Choose how a network is built; `precisions` is by the architecture's kind ("base", "pack"), "auto" is ours.

    Ours: a base in float16 and packs in int8. A router stays in float32, and a GPU computes in float16.
    Raises ArtefactError for a precision that the target has no kernels for.
    """
    wanted = precisions.get(architecture.kind, "float32")
    if wanted == "auto":
        wanted = _DEFAULTS[architecture.kind]
    if architecture.kind != "router" and wanted not in kernel_precisions(target):
        known = ", ".join(kernel_precisions(target))
        raise ArtefactError(f"{target.name} has kernels for {known}, not for {wanted}; use precision auto")
    return Build(architecture=architecture, target=target, dtype=target.dtype, precision=wanted, graphs=tuple(graphs))


def kernel_precisions(target: Target) -> tuple[str, ...]:
    """List the precisions that a target has kernels for."""
    return PRECISIONS if target.dtype == "float32" else tuple(one for one in PRECISIONS if one != "float32")


def ensure_artefacts(builds: Sequence[Build], cache_dir: Path, progress: Progress | None = None) -> list[Path]:
    """Return the directories of several artefacts; all that are missing or corrupt are built in one child."""
    directories = [artefact_directory(build, cache_dir) for build in builds]
    missing = {path: build for build, path in zip(builds, directories, strict=True) if not _is_sound(path)}
    if missing:
        run_compiler(list(missing.values()), artefacts_directory(cache_dir), progress)
        for path in missing:
            check_artefact(path)
    return directories


def artefact_directory(build: Build, cache_dir: Path) -> Path:
    """Return where the artefact of `build` is, or will be."""
    return artefacts_directory(cache_dir) / build.key


def artefacts_directory(cache_dir: Path) -> Path:
    """Return the folder of all artefacts in a cache."""
    return cache_dir / "artefacts"


def list_artefacts(cache_dir: Path) -> list[tuple[Path, ArtefactMeta | ArtefactError]]:
    """List the artefacts of a cache by name, each with its description or with what is wrong with it."""
    found: list[tuple[Path, ArtefactMeta | ArtefactError]] = []
    folder = artefacts_directory(cache_dir)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            found.append((path, check_artefact(path)))
        except ArtefactError as error:
            found.append((path, error))
    return found


def check_artefact(directory: Path) -> ArtefactMeta:
    """Read an artefact's description and compare its files with their digests.

    Raises ArtefactError when anything is missing or different.
    """
    meta = read_meta(directory)
    if meta.key != directory.name:
        raise ArtefactError(f"{directory} holds the artefact {meta.key}; remove it")
    for name in meta.modules.values():
        try:
            digest = file_sha256(directory / name)
        except OSError as error:
            raise ArtefactError(f"{directory / name} cannot be read ({error.strerror}); build it again") from None
        if digest != meta.sha256.get(name):
            raise ArtefactError(
                f"{directory / name} is corrupt: its digest is not the one in meta.json; build it again"
            )
    return meta


def building_prefix(builder: int) -> str:
    """Return how the folders begin that the process `builder` builds in."""
    return f"{BUILDING_PREFIX}{builder}-"


def tvm_version() -> str:
    """Return the version of the installed TVM, without importing it."""
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        raise ArtefactError("apache-tvm is not installed; run `pip install apache-tvm`") from None


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Hash the sources that decide what is compiled: the networks and the compiler."""
    core = Path(__file__).parents[1]
    sources = [core / "sdk" / "architecture.py", core / "device" / "metadata.py"]
    return digest_sources([*sources, *python_files(core / "graph"), *python_files(compiler_directory())])


def compiler_directory() -> Path:
    """Return where the compiler is installed, without importing it; raises ArtefactError where it is not."""
    spec = importlib.util.find_spec(COMPILER)
    if spec is None or spec.origin is None:
        raise ArtefactError(f"{COMPILER} is not installed beside modularbase_core; install modularbase again")
    return Path(spec.origin).parent


def digest_sources(paths: Iterable[Path]) -> str:
    """Hash names and contents of source files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + file_sha256(path).encode())
    return digest.hexdigest()


def python_files(folder: Path) -> list[Path]:
    """List a folder's sources in an order of their own."""
    return sorted(folder.rglob("*.py"))


def _is_sound(directory: Path) -> bool:
    if not directory.exists():
        return False
    try:
        check_artefact(directory)
    except ArtefactError:
        return False  # the compiler replaces it
    return True


def run_compiler(builds: Sequence[Build], folder: Path, progress: Progress | None, *options: str) -> None:
    """Build in a child process, into `folder`; raises ArtefactError with what stopped it."""
    _check_writable(folder)
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        request = Path(scratch, "request.json")
        request.write_text(json.dumps({"builds": [_build_to_dict(build) for build in builds]}))
        command = [sys.executable, "-m", COMPILER, "--request", str(request), "--json", *options]
        # it ends when its input does, so that nothing builds on for a parent that was killed
        command += ["--out", str(folder), "--until-input-ends"]
        # the child needs the whole compiler, even where this process asked for TVM's runtime alone
        environment = {name: value for name, value in os.environ.items() if name != "TVM_USE_RUNTIME_LIB"}
        with Path(scratch, "stderr").open("w+") as stderr:
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, stdin=subprocess.PIPE, text=True, env=environment
            )
            failure = _follow(child, progress)
            stderr.seek(0)
            last = ([line for line in stderr.read().splitlines() if line.strip()] or ["it said nothing"])[-1]
    if child.returncode:
        _sweep(folder, child.pid)
        raise ArtefactError(failure or _last_words(child.returncode, last.strip(), folder))


def _sweep(folder: Path, builder: int) -> None:
    """Remove what a child left that could not: LLVM ends its process when it cannot write."""
    for path in folder.glob(f"{building_prefix(builder)}*"):
        shutil.rmtree(path, ignore_errors=True)


def _last_words(code: int, last: str, folder: Path) -> str:
    if "IO failure" in last or "No space left" in last:
        return f"the compiler cannot write ({last}); free space in {folder} and in the temporary folder"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"the compiler was ended by signal {name}; see that there is memory enough, and run again"
    return f"the compiler failed with exit code {code}: {last}"


def _follow(child: subprocess.Popen[str], progress: Progress | None) -> str | None:
    """Turn the child's lines into calls of `progress` until it ends; return its error sentence, if any."""
    failure = None
    assert child.stdout is not None
    try:
        for line in child.stdout:
            with suppress(ValueError):  # a library's print is not ours
                event = json.loads(line)
                if "error" in event:
                    failure = str(event["error"])
                elif progress is not None and "phase" in event:
                    progress(str(event["phase"]), int(event["done"]), int(event["total"]))
        child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        child.stdout.close()
        if child.stdin is not None:
            child.stdin.close()
    return failure


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArtefactError(
            f"the cache {folder} cannot be written ({error.strerror}); set MODULARBASE_CACHE to a writable folder"
        ) from None


def _build_to_dict(build: Build) -> dict[str, object]:
    return {
        "architecture": architecture_to_dict(build.architecture),
        "target": build.target.to_dict(),
        "dtype": build.dtype,
        "precision": build.precision,
        "graphs": [str(folder) for folder in build.graphs],
    }
