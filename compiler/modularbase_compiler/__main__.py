"""The compiler as a program: `python -m modularbase_compiler --request request.json --out DIR [--json]`.

A request lists builds; with --json every step is a line {"phase", "done", "total"} on stdout, and a failure a
line {"error"} with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from modularbase_compiler.toolchain import prepare_cuda
from modularbase_core.device.artefact import Build
from modularbase_core.device.target import Target
from modularbase_core.errors import ArtefactError, ModularBaseError
from modularbase_core.sdk.architecture import architecture_from_dict


def main(arguments: list[str] | None = None) -> int:
    """Build what the request lists; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m modularbase_compiler", description=__doc__)
    parser.add_argument("--request", type=Path, required=True, help="JSON file with the builds")
    parser.add_argument("--out", type=Path, required=True, help="folder of the artefacts")
    parser.add_argument("--json", action="store_true", help="tell progress and errors as JSON lines")
    options = parser.parse_args(arguments)
    try:
        _build_all(_read_request(options.request), options.out, options.json)
    except ModularBaseError as error:
        _tell({"error": str(error)} if options.json else str(error), error=not options.json)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _build_all(builds: list[Build], folder: Path, as_json: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        if any(build.target.name == "cuda" for build in builds):
            prepare_cuda(Path(scratch))
        _build_each(builds, folder, as_json)


def _build_each(builds: list[Build], folder: Path, as_json: bool) -> None:
    # imported here: CUDA must be prepared before TVM, and a bad request need not wait for it and torch
    from modularbase_compiler.build import PHASES, build_artefact

    total, done = len(builds) * len(PHASES), 0
    for build in builds:

        def step(phase: str, kind: str = build.architecture.kind) -> None:
            nonlocal done
            event = {"phase": f"{phase} {kind}", "done": done, "total": total}
            _tell(event if as_json else f"[{done}/{total}] {event['phase']}")
            done += 1

        place = build_artefact(build, folder, step)
        if not as_json:
            _tell(str(place))
    _tell({"phase": "done", "done": total, "total": total} if as_json else f"[{total}/{total}] done")


def _read_request(path: Path) -> list[Build]:
    try:
        request = json.loads(path.read_text())
        return [
            Build(
                architecture=architecture_from_dict(item["architecture"]),
                target=Target.from_dict(item["target"]),
                dtype=item["dtype"],
                quantisation=item["quantisation"],
            )
            for item in request["builds"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"the request {path} cannot be read ({error}); write it as `device.artefact` does"
        ) from None


def _tell(event: Any, *, error: bool = False) -> None:
    line = event if isinstance(event, str) else json.dumps(event)
    print(line, file=sys.stderr if error else sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
