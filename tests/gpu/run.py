"""The script itself: prepare what travels, or run every section there is time for and write the report.

Decides the order of sections and how long each may take. `tests/gpu/run_all` is the way in.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpu.sets import PRECISIONS, SETS

LAUNCHER: Final = Path(__file__).with_name("run_all")
SECONDS: Final = 460
"""For all sections: a report must be written even where they are slow."""
ORDER: Final = ("programs", "turns", "speed", "memory", "swap", "peers")
LIMITS: Final = {"programs": 150, "turns": 150, "peers": 150}
"""Seconds of a section, 90 of others; a hang must leave time for the rest."""


@dataclass(frozen=True, slots=True)
class Job:
    """A section to run on a set in a precision."""

    section: str
    set: str
    precision: str

    @property
    def label(self) -> str:
        """What the report calls it."""
        return f"{self.section} {self.set} {self.precision}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks; exit code 1 where a check failed, 2 where nothing could be run."""
    options = _parser().parse_args(arguments)
    if options.prepare:
        from gpu.prepare import prepare

        return prepare(options.prepare, tuple(options.gpu), options.sets, options.precisions)
    if fault := unable(options):
        print(fault, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="modularbase-gpu-") as scratch:
        options.scratch = options.scratch or Path(scratch)
        if options.section:
            return run_section(options)
        return run_all(options)


def unable(options: argparse.Namespace) -> str | None:
    """Say in a sentence why nothing can be run, if so."""
    if options.device == "cuda":
        if options.carried is None or not (options.carried / "prepared.json").is_file():
            return (
                f"{options.carried or '--carried'} holds nothing prepared; run tests/gpu/run_all --prepare FOLDER first"
            )
        wanted = json.loads((options.carried / "prepared.json").read_text())["python"]
        if wanted != f"{sys.version_info.major}.{sys.version_info.minor}":
            return (
                f"{options.carried} was prepared for Python {wanted}, this is {platform.python_version()}; use that one"
            )
        return without_driver()
    return None


def without_driver(library: str = "libcuda.so.1") -> str | None:
    """Say in a sentence that no GPU answers, if so."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver is here ({library} does not load); run this on a machine with a GPU"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver answers but has no GPU; run this on a machine with one"
    return None


def run_all(options: argparse.Namespace) -> int:
    """Run what was prepared, most important first, and write report.md and report.json."""
    from gpu.report import write_report

    begun = time.monotonic()
    results: dict[str, Any] = {}
    for job in jobs(options):
        left = options.seconds - (time.monotonic() - begun)
        limit = min(left, LIMITS.get(job.section, 90))
        results[job.label] = ended(job, options, limit) if limit > 5 else {"ok": None, "failed": "there was no time"}
        results[job.label] |= {"section": job.section, "set": job.set, "precision": job.precision}
        print(f"{job.label}: {_verdict(results[job.label])}", flush=True)
        write_report(results, about(options), options.out)  # each time: what is known survives a kill
    print(f"{time.monotonic() - begun:.0f} s; the report is {options.out / 'report.md'}")
    return int(any(one["ok"] is False for one in results.values()))


def jobs(options: argparse.Namespace) -> list[Job]:
    """List what to run, precision by precision, what is checked before what is timed; torch and bandwidth once."""
    found: list[Job] = []
    measured: set[str] = set()
    for precision in options.precisions:
        ready = [name for name in options.sets if _is_ready(options, name, precision)]
        for section in ORDER:
            if section == "speed" and ready and not measured:
                found.append(Job("bandwidth", ready[0], precision))  # what speeds are a share of
            wanted = [name for name in ready if section != "peers" or name not in measured]
            found += [Job(section, name, precision) for name in wanted]
        measured.update(ready)
    return found


def ended(job: Job, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run a section in a process of its own; return its values, or how it failed."""
    command = [sys.executable, str(LAUNCHER), "--section", job.section, "--sets", job.set]
    command += ["--precisions", job.precision, "--device", options.device, "--out", str(options.out)]
    command += ["--scratch", str(options.scratch), *(["--small"] if options.small else [])]
    command += ["--carried", str(options.carried)] if options.carried else []
    begun = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "failed": f"it ran longer than {limit:.0f} s"}
    (options.out / f"{job.label.replace(' ', '-')}.log").write_text(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        return {"ok": False, "failed": f"exit code {done.returncode}: {said[-1][:300]}"}
    return {**json.loads(lines[-1]), "seconds": round(time.monotonic() - begun, 1)}


def run_section(options: argparse.Namespace) -> int:
    """Be the process of one section."""
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")  # what it would build needs a compiler
    if options.device == "cuda":  # before torch is there, which TVM's bindings would otherwise take up
        from modularbase_core.device.executable import Device

        Device("cuda", graphs=False)
    from gpu.options import Options
    from gpu.sections import run

    from modularbase_core.device.artefact import artefacts_directory

    cache = options.scratch / "cache"
    if options.carried and not cache.exists():  # gigabytes of repacked weights do not belong there
        cache.mkdir(parents=True)
        artefacts_directory(cache).symlink_to(artefacts_directory(options.carried.resolve() / "cache"))
    gpus = json.loads((options.carried / "prepared.json").read_text())["gpus"] if options.carried else ()
    asked = Options(
        set=options.sets[0],
        precision=options.precisions[0],
        device=options.device,
        cache=cache,
        made=options.scratch / "packs" / options.sets[0],
        gpus=tuple(gpus),
        small=options.small,
    )
    return run(options.section, asked)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine."""
    found: dict[str, Any] = {"device": options.device, "python": platform.python_version()}
    found |= {"machine": platform.machine(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    if options.device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        try:
            found["gpu"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            found["gpu"] = "unknown: nvidia-smi does not run"
    return found


def _is_ready(options: argparse.Namespace, name: str, precision: str) -> bool:
    if options.carried is None:
        return True
    said = json.loads((options.carried / "prepared.json").read_text())["sets"].get(name, {}).get(precision, "")
    if said != "ok":
        print(f"{name} {precision}: left out, {said or 'not prepared'}")
    return bool(said == "ok")


def _verdict(result: dict[str, Any]) -> str:
    words = {True: "well", False: "FAILED", None: "not run"}[result["ok"]]
    return f"{words}{', ' + result['failed'] if 'failed' in result else ''}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests/gpu/run_all", description="check and measure a GPU; see docs/gpu.md")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="gather what the GPU machine needs, and end")
    parser.add_argument("--gpu", nargs="+", default=["sm_90"], help="with --prepare: architectures, such as sm_89")
    parser.add_argument("--carried", type=Path, metavar="FOLDER", help="what --prepare made")
    out = Path(os.environ.get("OUT", "gpu-report"))
    parser.add_argument("--out", type=Path, default=out, help="folder of the report; $OUT, or gpu-report")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the script itself")
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=["nano", "4gb"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all sections")
    parser.add_argument("--small", action="store_true", help="sizes that are over in seconds")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser
