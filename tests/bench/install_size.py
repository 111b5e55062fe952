"""How many bytes an installation without torch takes, and how many of them a chat needs once all is compiled.

Installed: the files that pip records for modularbase and whatever it requires, bytecode included; Python, pip and packs
are not counted. The bar is 450 MB.
Runtime: the files, of those, that a chat with a warm cache opens or maps, with the source beside each bytecode file.
They are copied to an empty folder and must answer from there, with nothing else installed. The bar is 150 MB. A
distribution that ships only these, and without a compiler, is not made: this is what one could be.

    python tests/bench/install_size.py [--python PYTHON]

Without --python a fresh virtual environment is made from this clone. MB are millions of bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("install_size_worker.py")
SET = "modularbase-nano"
PACKS = ("modularbase_nano", "modularbase_pack")
BARS_MB = {"installed": 450, "runtime": 150}


def fresh(folder: Path) -> Path:
    """Make a virtual environment of this clone and the nano set; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", ROOT, ROOT / "plugins_example" / SET]
    subprocess.run(command, check=True)
    return python


def ask(python: Path, *arguments: object, apart: Path | None = None) -> str:
    """Run the worker; `apart`: with what lies in that folder alone."""
    flags, path = (["-I"], []) if apart is None else (["-I", "-S"], [str(apart)])
    command = [str(WORKER), *map(str, arguments)]
    start = f"import runpy, sys; sys.path[:0] = {path}; sys.argv = {command}"
    program = f"{start}; runpy.run_path(sys.argv[0], None, '__main__')"
    # not from here, where the clone would be imported
    away = {"cwd": WORKER.anchor, "check": True, "text": True, "stdout": subprocess.PIPE}
    return subprocess.run([python, *flags, "-c", program], **away).stdout


def measure(python: Path, scratch: Path) -> dict[str, Any]:
    """Return both sizes, by distribution and by package."""
    torch = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0
    by_distribution = json.loads(ask(python, "installed", "modularbase"))
    cache = ("--cache", scratch / "cache")
    ask(python, "chat", *cache)  # compiles
    files = [Path(name) for name in json.loads(ask(python, "opened", *cache))]
    site = Path(ask_site(python))
    apart = scratch / "apart"
    packs = {name.parts[0] for name in files if name.parts[0].startswith(PACKS)}
    for name in packs:
        shutil.copytree(site / name, apart / name)  # weights must be there, though what is repacked is read instead
    files = [name for name in files if name.parts[0] not in packs]
    for name in files:
        (apart / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site / name, apart / name)
    answer = ask(python, "chat", *cache, apart=apart)
    runtime: Counter[str] = Counter()
    for name in files:
        runtime[name.parts[0]] += (site / name).stat().st_size
    return {
        "torch_installed": torch,
        "installed_mb": round(sum(size for size, _ in by_distribution.values()) / 1e6, 1),
        "bytecode_mb": round(sum(size for _, size in by_distribution.values()) / 1e6, 1),
        "runtime_mb": round(sum(runtime.values()) / 1e6, 1),
        "files": len(files),
        "answers_apart": bool(answer.strip()),
        "bars_mb": BARS_MB,
        "installed": {name: round(size / 1e6, 1) for name, (size, _) in by_distribution.items() if size > 1e6},
        "runtime": {name: round(size / 1e6, 1) for name, size in runtime.most_common() if size > 3e5},
    }


def ask_site(python: Path) -> str:
    """Return where that Python's distributions are installed."""
    program = "import os, sysconfig; print(os.path.realpath(sysconfig.get_path('purelib')))"
    return subprocess.run([python, "-c", program], check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def show(figures: dict[str, Any]) -> None:
    """Print the tables and the JSON line."""
    for kind, bar in BARS_MB.items():
        got = figures[f"{kind}_mb"]
        over = f"over the bar by {got - bar:.1f}" if got > bar else "under the bar"
        print(f"{kind:<28}{got:>8.1f} MB, {over} ({bar})")
        for name, size in sorted(figures[kind].items(), key=lambda item: -item[1]):
            print(f"  {name:<26}{size:>8.1f}")
    print(f"of what is installed, {figures['bytecode_mb']:.1f} MB are bytecode that pip makes")
    print(json.dumps(figures))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="of an environment that has modularbase and the nano set")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = options.python.absolute() if options.python else fresh(Path(scratch, "venv"))
        show(measure(python, Path(scratch)))


if __name__ == "__main__":
    main()
