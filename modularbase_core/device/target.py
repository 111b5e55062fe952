"""The machine that an artefact is compiled for, as plain data: processor level, features, GPU architectures.

Read from /proc/cpuinfo, without TVM or torch. Where there is no such file (macOS, Windows) the processor counts
as generic: code compiled for it is portable and slow, and `Target.portable` says so.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modularbase_core.errors import ArtefactError

CUDA_ARCHITECTURES: Final = ("sm_75", "sm_86", "sm_89", "sm_90")

_CPUINFO: Final = Path("/proc/cpuinfo")
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
# the x86-64 psABI levels, by the names that Linux gives the flags
_LEVELS: Final = (
    ("x86-64-v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"),
    ("x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)
# beyond the levels: Linux's flag -> LLVM's feature
_EXTRA: Final = {
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "amx_tile": "amx-tile",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_vnni": "avx512vnni",
    "avx512vbmi": "avx512vbmi",
    "avx_vnni": "avxvnni",
}
_VENDORS: Final = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What code is generated for. `level` is the host processor's; `features` are its extras, or GPU architectures.

    vendor: "intel", "amd" or "" of the processor, which kernels are tuned for.
    """

    name: str
    system: str
    machine: str
    level: str
    features: tuple[str, ...] = ()
    vendor: str = ""

    @property
    def dtype(self) -> str:
        """The dtype that networks run in: float16 on CUDA (with float32 accumulation), else float32."""
        return "float16" if self.name == "cuda" else "float32"

    @property
    def portable(self) -> bool:
        """Whether the processor's own features are unknown, so that code is portable and slow."""
        return self.level == "generic"

    def to_dict(self) -> dict[str, Any]:
        """Describe the target as plain JSON values."""
        return {
            "name": self.name,
            "system": self.system,
            "machine": self.machine,
            "level": self.level,
            "features": list(self.features),
            "vendor": self.vendor,
        }

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Target:
        """Read what `to_dict` wrote; raises ArtefactError when it is something else."""
        try:
            texts = {key: str(value[key]) for key in ("name", "system", "machine", "level")}
            features = tuple(str(item) for item in value["features"])
            return Target(**texts, features=features, vendor=str(value.get("vendor", "")))
        except (KeyError, TypeError) as error:
            raise ArtefactError(f"the target {value!r} cannot be read ({error}); build the artefact again") from None


def cpu_target(cpuinfo: Path = _CPUINFO) -> Target:
    """Describe this machine's processor."""
    system, machine = platform.system().lower(), _machine()
    processor = next((entry for entry in _entries(cpuinfo) if "flags" in entry), {})
    flags = set(processor.get("flags", "").split())
    level = "generic"
    features: tuple[str, ...] = ()
    if machine == "x86_64" and flags:
        level = "x86-64"
        for name, needed in _LEVELS:
            if not flags.issuperset(needed.split()):
                break
            level = name
        features = tuple(feature for flag, feature in sorted(_EXTRA.items()) if flag in flags)
    vendor = _VENDORS.get(processor.get("vendor_id", ""), "")
    return Target(name="cpu", system=system, machine=machine, level=level, features=features, vendor=vendor)


def cuda_target(architectures: tuple[str, ...] = CUDA_ARCHITECTURES) -> Target:
    """Describe GPUs of `architectures` under a Linux host that need not be this one."""
    level = "x86-64-v3" if _machine() == "x86_64" else "generic"
    return Target(name="cuda", system="linux", machine=_machine(), level=level, features=architectures)


def physical_cores(cpuinfo: Path = _CPUINFO, quota: Path = _CPU_QUOTA) -> int:
    """Count the physical cores that this process may use; hyper-threads share one, and a container's quota limits."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    cores = set()
    for entry in _entries(cpuinfo):
        number = entry.get("processor", "")
        if usable is None or not number.isdigit() or int(number) in usable:
            cores.add((entry.get("physical id", "0"), entry.get("core id", number)))
    count = len(cores) or (len(usable) if usable else os.cpu_count() or 1)
    try:
        limit, period = quota.read_text().split()
        count = min(count, max(1, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):
        pass  # no control groups, or "max": no quota
    return count


def _machine() -> str:
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _entries(cpuinfo: Path) -> list[dict[str, str]]:
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return []
    entries = []
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        entry = {key.strip(): value.strip() for key, _, value in pairs}
        if entry:
            entries.append(entry)
    return entries
