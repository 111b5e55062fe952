"""What `install_size.py` runs in the environment that it measures: who takes which bytes, and what a chat opens."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def installed(root: str) -> dict[str, list[int]]:
    """Return bytes by distribution, all of them and those of bytecode, for `root` and what it requires."""
    from packaging.requirements import Requirement

    found: dict[str, list[int]] = {}
    todo = [root]
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            one = distribution(name)
        except PackageNotFoundError:  # for another system or Python
            continue
        paths = [Path(str(file.locate())) for file in one.files or ()]
        sizes = {path: path.stat().st_size for path in paths if path.is_file()}
        found[name] = [sum(sizes.values()), sum(size for path, size in sizes.items() if path.suffix == ".pyc")]
        wanted = map(Requirement, one.requires or ())
        todo += [item.name for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    return found


def chat(arguments: list[str]) -> None:
    """Answer one question; exits where that fails."""
    from modularbase_core.cli import main

    try:
        main(["chat", "What is a list?", "--max-tokens", "4", "--quiet", *arguments])
    except SystemExit as end:
        if end.code:
            raise


def opened(arguments: list[str]) -> list[str]:
    """Return the files of the environment that a chat opens or maps, relative to where it is installed."""
    seen: set[str] = set()

    def note(event: str, values: tuple[object, ...]) -> None:
        if event == "open" and isinstance(values[0], (str, os.PathLike)):
            seen.add(os.path.realpath(os.fspath(values[0])))

    sys.addaudithook(note)
    with contextlib.redirect_stdout(sys.stderr):
        chat(arguments)
    maps = Path("/proc/self/maps").read_text().splitlines()
    seen.update(line.split(maxsplit=5)[5] for line in maps if "/" in line)
    root = Path(sysconfig.get_path("purelib")).resolve()
    paths = {path for path in map(Path, seen) if path.is_relative_to(root) and path.is_file()}
    # bytecode is read only where its source lies beside it
    paths |= {path.parents[1] / f"{path.name.split('.')[0]}.py" for path in paths if path.suffix == ".pyc"}
    return sorted(str(path.relative_to(root)) for path in paths)


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "installed":
        print(json.dumps(installed(rest[0])))
    elif mode == "opened":
        print(json.dumps(opened(rest)))
    else:
        chat(rest)
