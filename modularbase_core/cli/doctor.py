"""`modularbase doctor`: everything that chat depends on, and what of it is wrong."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from importlib_metadata import PackageNotFoundError, version

from modularbase_core.cli.pack.list import describe_packs
from modularbase_core.cli.plugins import describe_plugins, plugin_notes
from modularbase_core.cli.report import json_option, print_json
from modularbase_core.cli.settings import installed, read_settings, settings_options
from modularbase_core.errors import TORCH_REMEDY, ModularBaseError

if TYPE_CHECKING:
    from modularbase_core.config import EngineConfig
    from modularbase_core.device.artefact import Build
    from modularbase_core.packs.catalog import Catalog

RUNTIME: Final = ("modularbase", "apache-tvm", "apache-tvm-ffi", "numpy", "tokenizers")
"""Distributions without which chat cannot run; torch trains, and compiles what brings no graph."""
LINKERS: Final = ("g++", "gcc", "clang++", "clang", "c++", "cc")
"""The programs of which the compiler takes the first that is there."""
NVRTC: Final = {"headers": "include/cuda_fp16.h", "NVRTC": "lib/libnvrtc.so*"}
"""What the wheels of the extra `cuda` must bring to compile for GPUs, under nvidia/cu13."""


@click.command(short_help="Check the installation; fails where chat would.")
@json_option
@settings_options
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, config_file: Path | None, cache_dir: Path | None) -> None:
    """Check versions, targets, devices, cache, plugins and packs; fails when chat cannot run."""
    report = examine(read_settings(config_file, cache_dir))
    if as_json:
        print_json(report)
    else:
        click.echo("\n".join(_lines(report)))
    if report["problems"]:
        ctx.exit(1)


# Any: plain JSON values, here and below
def examine(config: EngineConfig) -> dict[str, Any]:
    """Describe the installation; `problems` makes chat impossible, `notes` does not."""
    problems: list[str] = []
    notes: list[str] = []
    versions = {name: _version(name) for name in (*RUNTIME, "torch")}
    problems += [f"{name} is not installed; run `pip install {name}`" for name in RUNTIME if versions[name] is None]
    catalog, _ = installed(config)
    missing = _missing(config, catalog)
    (problems if missing else notes).extend(
        _compiling_faults(config.device, [build.architecture.kind for build in missing])
    )
    if versions["torch"] is None:
        lacking = _without_graph(missing)
        (problems if lacking else notes).append(_torch_fault(lacking))
    packs = describe_packs(catalog, config.base)
    if packs["problem"]:
        problems.append(packs["problem"])
    notes += plugin_notes(catalog)
    notes += [one[key] for key in ("refused", "note") for one in packs["packs"] if one[key]]
    weights = _faults(catalog)
    resident = {one["id"] for one in packs["packs"] if one["type"] != "domain"}
    for id, fault in weights.items():
        (problems if id in resident else notes).append(fault)
    cache = _cache(config.cache_dir)
    artefacts = _artefacts(config.cache_dir)
    notes += [one["fault"] for one in artefacts if one["fault"]]
    if cache["fault"]:
        (problems if missing else notes).append(cache["fault"])
    targets, devices = _targets(), _devices()
    if config.device == "cuda" and len(devices) == 1:
        problems.append("the settings ask for cuda, but no NVIDIA driver answers; install one or set device = 'cpu'")
    return {
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **versions},
        "targets": targets,
        "devices": devices,
        "settings": {**asdict(config), "cache_dir": str(config.cache_dir), "sessions_dir": str(config.sessions_dir)},
        "cache": cache,
        "artefacts": artefacts,
        "plugins": describe_plugins(catalog),
        "plugins_limited_to": catalog.only,
        "packs": packs["packs"],
        "broken": packs["broken"],
        "notes": notes,
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _faults(catalog: Catalog) -> dict[str, str]:
    """Return what is wrong with packs' files, by id."""
    from modularbase_core.sdk.testing import check_pack

    faults = {}
    for one in catalog.packs:
        try:
            check_pack(one.pack.directory, store=one.pack.store)
        except ModularBaseError as error:
            faults[one.id] = str(error)
    return faults


def _missing(config: EngineConfig, catalog: Catalog) -> list[Build]:
    """Return what chat has yet to compile; nothing where it cannot come so far."""
    from modularbase_core.device.artefact import artefact_directory, check_artefact
    from modularbase_core.packs.resolve import line_up

    try:
        from modularbase_core.host import plan_builds, target_of

        lineup = line_up(catalog, config.base)
        packs = [lineup.base, lineup.router, *lineup.routable]
        builds = plan_builds(packs, target_of(config.device), config.precisions)
        directories = [artefact_directory(build, config.cache_dir) for build in builds]
    except (ImportError, ModularBaseError):  # a distribution or pack that is not there: a problem already
        return []
    missing = []
    for build, directory in zip(builds, directories, strict=True):
        try:
            check_artefact(directory)
        except ModularBaseError:
            missing.append(build)
    return missing


def _without_graph(builds: list[Build]) -> list[str]:
    """Return the kinds of network that no pack brings a graph of."""
    from modularbase_core.device.graphs import find_graph

    return [build.architecture.kind for build in builds if find_graph(build) is None]


def _torch_fault(kinds: list[str]) -> str:
    if kinds:
        then = f"chat has yet to compile {len(kinds)} networks whose packs bring no graph ({', '.join(kinds)})"
    else:
        then = "chat can do without, training cannot, nor compiling a network whose pack brings no graph"
    return f"torch is not installed; {then}; {TORCH_REMEDY}"


def _compiling_faults(device: str, missing: list[str]) -> list[str]:
    then = "what is compiled runs, but nothing new can be compiled"
    if missing:
        then = f"chat has yet to compile {len(missing)} of its networks ({', '.join(missing)})"
    faults = []
    if not any(map(shutil.which, LINKERS)):
        faults.append(f"linking compiled code needs a C compiler; {then}; install gcc or clang")
    if device == "cuda" and (lacking := _lacking_for_cuda()):
        named = " and ".join(lacking)
        faults.append(f"compiling for CUDA needs {named}; {then}; run `pip install 'modularbase[cuda]'`")
    return faults


def _lacking_for_cuda() -> list[str]:
    """Name what is not installed of what the compiler looks for, without importing it."""
    spec = importlib.util.find_spec("nvidia")
    homes = [Path(place) / "cu13" for place in (spec.submodule_search_locations or ())] if spec else []
    lacking = [what for what, files in NVRTC.items() if not any(True for home in homes for _ in home.glob(files))]
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        lacking.append("cuda-bindings")
    return lacking


def _targets() -> list[dict[str, Any]]:
    from modularbase_core.device.target import cpu_target, cuda_target

    return [cpu_target().to_dict(), cuda_target().to_dict()]


def _devices() -> list[dict[str, Any]]:
    from modularbase_core.device.target import physical_cores

    devices: list[dict[str, Any]] = [{"kind": "cpu", "name": platform.machine(), "physical_cores": physical_cores()}]
    program = shutil.which("nvidia-smi")
    if program is None:
        return devices
    query = [program, "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return devices
    for line in done.stdout.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            keys = ("name", "driver", "memory_mib", "compute_capability")
            devices.append({"kind": "cuda", **dict(zip(keys, fields, strict=True))})
    return devices


def _cache(folder: Path) -> dict[str, Any]:
    fault = None
    try:
        # a folder that is not there yet will be made in the nearest that is
        with tempfile.TemporaryFile(dir=next(one for one in (folder, *folder.parents) if one.exists())):
            pass
    except OSError as error:
        fault = f"the cache {folder} cannot be written ({error.strerror}); name another with --cache"
    return {"directory": str(folder), "writable": fault is None, "fault": fault}


def _artefacts(folder: Path) -> list[dict[str, Any]]:
    from modularbase_core.device.artefact import list_artefacts

    rows = []
    for path, found in list_artefacts(folder):
        row: dict[str, Any] = {"directory": str(path), "kind": None, "target": None, "dtype": None, "fault": None}
        if isinstance(found, ModularBaseError):
            row["fault"] = str(found)
        else:
            row.update(kind=found.architecture.kind, target=found.target.to_dict(), dtype=found.dtype)
        rows.append(row)
    return rows


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: {text or 'not installed'}" for name, text in report["versions"].items()]
    for one in report["targets"]:
        lines.append(f"target {one['name']}: {one['machine']} {one['level']} {' '.join(one['features'])}".rstrip())
    for one in report["devices"]:
        lines.append("device " + ", ".join(f"{key} {value}" for key, value in one.items() if key != "kind"))
    lines.append(f"cache: {report['cache']['directory']}{'' if report['cache']['writable'] else ' (not writable)'}")
    for one in report["artefacts"]:
        if not one["fault"]:
            name = Path(one["directory"]).name[:16]
            lines.append(f"artefact {name}: {one['kind']} for {one['target']['name']}, {one['dtype']}")
    if (limits := report["plugins_limited_to"]) is not None:
        lines.append(f"plugins: {'limited to ' + ', '.join(limits) if limits else 'switched off'}")
    for one in report["plugins"]:
        lines.append(f"plugin {one['name']} of {one['distribution']}: {one['milliseconds']:.0f} ms")
    for one in report["packs"]:
        lines.append(f"pack {one['id']} {one['version']}: {one['type']}, of {one['distribution']}")
    lines += [f"note: {text}" for text in report["notes"]]
    lines += [f"problem: {text}" for text in report["problems"]] or ["chat can run"]
    return lines
