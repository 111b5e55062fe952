"""Wheels of tiny packs, zipped without a build tool, and a pip that only pretends."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tiny_packs import write_pack

from modularbase_core.packs.pip import Outcome
from modularbase_core.sdk.manifest import Manifest

CODE = """from pathlib import Path
from modularbase_core.sdk import Pack, hookimpl

@hookimpl
def modularbase_packs():
    return [Pack(path.parent) for path in sorted(Path(__file__).parent.glob("*/manifest.json"))]
"""


def write_wheel(
    folder: Path,
    distribution: str,
    version: str = "1.0.0",
    packs: Iterable[Manifest] = (),
    *,
    requires: Sequence[str] = (),
    group: str = "modularbase",
    left_out: Sequence[str] = (),
    replaced: dict[str, bytes] | None = None,
    seed: int = 0,
) -> Path:
    """Write the wheel of a distribution that offers `packs`; return its path.

    left_out: names of data files that are not put in. replaced: contents by path inside the wheel, for new files too.
    """
    module = distribution.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    files: dict[str, bytes] = {
        f"{module}/__init__.py": CODE.encode(),
        f"{info}/METADATA": (metadata + "".join(f"Requires-Dist: {one}\n" for one in requires)).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tiny\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{group}]\n{module} = {module}\n".encode(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number, described in enumerate(packs):
            place = write_pack(Path(scratch, described.id), described, seed + number)
            for path in sorted(place.rglob("*")):
                if path.is_file() and path.name not in left_out:
                    files[f"{module}/{path.relative_to(scratch).as_posix()}"] = path.read_bytes()
    files |= replaced or {}
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


NOT_FOUND = """ERROR: Could not find a version that satisfies the requirement {0} (from versions: {1})
ERROR: No matching distribution found for {0}
"""
BROKEN = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError()': /simple/x/\n"


class FakePip:
    """Stands in for running pip: offers wheels by requirement and remembers what it was asked.

    answers: outcomes by command, given instead. offline: the index cannot be reached.
    """

    def __init__(self, offered: dict[str, Path] | None = None, *, offline: bool = False) -> None:
        self.offered, self.offline = offered or {}, offline
        self.asked: list[list[str]] = []
        self.answers: dict[str, Outcome] = {}

    def __call__(self, command: Sequence[str], shown: bool) -> Outcome:
        """Do what `python -m pip` would."""
        words = list(command[3:])
        self.asked.append(words)
        if words[0] in self.answers:
            return self.answers[words[0]]
        if words[0] == "wheel":
            wanted = words[-1]
            if wanted not in self.offered:
                return Outcome(1, (BROKEN if self.offline else "") + NOT_FOUND.format(wanted, "none"))
            folder = Path(words[words.index("--wheel-dir") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.offered[wanted], folder)
        return Outcome(0, "")

    def commands(self, name: str) -> list[list[str]]:
        """Return the runs of one command."""
        return [words for words in self.asked if words[0] == name]
