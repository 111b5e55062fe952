"""The compiler as a program, for `device.artefact` (--request) and for people (--target, --cubins).

With --json every step is a line {"phase", "done", "total"} on stdout, and a failure a line {"error"}; the exit code
of a failure is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from modularbase_compiler.cubins import cubins
from modularbase_compiler.toolchain import prepare_cuda
from modularbase_core.config import PRECISIONS
from modularbase_core.device.artefact import Build, plan_build
from modularbase_core.device.graphs import graph_name
from modularbase_core.device.target import CUDA_ARCHITECTURES, Target, cpu_target, cuda_target
from modularbase_core.errors import ArtefactError, ModularBaseError
from modularbase_core.sdk.architecture import architecture_from_dict


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.cubins and (options.out is None or not (options.request or options.architecture)):
        parser.error("give --request or --architecture, with --out; or --cubins")
    if options.until_input_ends:
        threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        if options.cubins:
            _list_cubins(options.cubins, options.json)
        else:
            (_write_graphs if options.graphs else _build_all)(_builds(options), options.out, options.json)
    except ModularBaseError as error:
        _tell({"error": str(error)} if options.json else str(error), error=not options.json)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modularbase_compiler")
    parser.add_argument("--request", type=Path, help="JSON file of builds, as `device.artefact` writes it")
    parser.add_argument("--architecture", type=Path, nargs="+", help="JSON files of architectures, or manifests")
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu", help="what to compile --architecture for")
    parser.add_argument("--gpu", nargs="+", default=CUDA_ARCHITECTURES, help="GPU architectures, such as sm_86")
    parser.add_argument(
        "--precision", choices=("auto", *PRECISIONS), default="auto", help="of --architecture's weights"
    )
    parser.add_argument("--out", type=Path, help="folder of the artefacts")
    parser.add_argument("--graphs", action="store_true", help="write portable graphs, which need no torch to compile")
    parser.add_argument("--cubins", type=Path, nargs="+", help="list the GPU code in these modules or artefacts")
    parser.add_argument("--json", action="store_true", help="tell progress, results and errors as JSON lines")
    parser.add_argument("--until-input-ends", action="store_true", help="end as soon as standard input does")
    return parser


def _builds(options: argparse.Namespace) -> list[Build]:
    if options.request:
        return _read_request(options.request)
    target = cpu_target() if options.target == "cpu" else cuda_target(tuple(options.gpu))
    builds = {}
    for path in options.architecture:
        value = _read_json(path)
        value = value.get("architecture", value) if isinstance(value, dict) else {}
        architecture = architecture_from_dict(value)
        build = plan_build(architecture, target, dict.fromkeys(("base", "pack"), options.precision))
        builds[build.key] = build
    return list(builds.values())


def _build_all(builds: list[Build], folder: Path, as_json: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="modularbase-") as scratch:
        if any(build.target.name == "cuda" for build in builds):
            prepare_cuda(Path(scratch))
        _build_each(builds, folder, as_json)


def _write_graphs(builds: list[Build], folder: Path, as_json: bool) -> None:
    from modularbase_compiler.graphs import graph_of

    for done, build in enumerate(builds):
        event = {"phase": f"graph {build.architecture.kind}", "done": done, "total": len(builds)}
        _tell(event if as_json else f"[{done}/{len(builds)}] {event['phase']}")
        (folder / graph_name(build)).write_bytes(graph_of(build).to_bytes(build.architecture))


def _build_each(builds: list[Build], folder: Path, as_json: bool) -> None:
    # imported here: CUDA must be prepared before TVM, and a bad request need not wait for it
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
            if build.target.name == "cuda":
                _list_cubins([place], as_json)
    _tell({"phase": "done", "done": total, "total": total} if as_json else f"[{total}/{total}] done")


def _list_cubins(paths: list[Path], as_json: bool) -> None:
    for path in paths:
        for module in sorted(path.glob("*.so")) if path.is_dir() else [path]:
            try:
                found = cubins(module)
            except OSError as error:
                raise ArtefactError(f"{module} cannot be read ({error.strerror}); check the path") from None
            event = {"module": str(module), "cubins": list(found)}
            _tell(event if as_json else f"{module.name}: {', '.join(found) or 'no GPU code'}")


def _read_request(path: Path) -> list[Build]:
    value = _read_json(path)
    try:
        return [
            Build(
                architecture=architecture_from_dict(item["architecture"]),
                target=Target.from_dict(item["target"]),
                dtype=item["dtype"],
                precision=item["precision"],
                graphs=tuple(map(Path, item.get("graphs", ()))),
            )
            for item in value["builds"]
        ]
    except (KeyError, TypeError) as error:
        raise ArtefactError(f"the request {path} lacks {error}; write it as `device.artefact` does") from None


def _read_json(path: Path) -> Any:  # Any: JSON of no known shape yet
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}); give a JSON file") from None


def _tell(event: Any, *, error: bool = False) -> None:
    line = event if isinstance(event, str) else json.dumps(event)
    print(line, file=sys.stderr if error else sys.stdout, flush=True)


def _end_with_input() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock, held here, would abort the interpreter's end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(signal_number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # when told to end, still remove what is half-written
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
