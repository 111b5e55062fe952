"""Runs one program and its tests in a process of its own: `python -I -m modularbase_core.evaluate.confined FD`.

Takes a JSON object on standard input, gives up what it does not need, and writes to the descriptor FD how it went.
Only what came to its end writes the nonce that it was given, so neither exit code nor output can feign a pass.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any, NoReturn

from modularbase_core.evaluate.kernel import confine_calls, confine_files, leave_network

LONGEST_REASON = 200


def main() -> NoReturn:
    """Confine this process, run what it was given, tell how it went, and end whatever still runs."""
    told, given = int(sys.argv[1]), json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    held = confine(given["limits"])
    try:
        _run(given["code"], given["tests"])
        reason = ""
    except BaseException as error:  # SystemExit before the last test is no pass
        reason = _reason(error)
    with contextlib.suppress(Exception):  # it may have put anything in its place
        sys.stdout.flush()
    message = {"reason": reason, "held": held} if reason else {"nonce": given["nonce"], "held": held}
    with contextlib.suppress(OSError):
        os.write(told, json.dumps(message).encode())
    os._exit(0)


# limits: plain JSON numbers
def confine(limits: dict[str, Any]) -> dict[str, str]:
    """Apply limits, then what the kernel offers; return what holds files, network and processes, empty for nothing.

    Memory and processor time are limited by the kernel for good: a process cannot raise its hard limits.
    """
    seconds = int(limits["cpu_seconds"])
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _limit(kind, soft, hard)
    files = confine_files(Path.cwd(), _readable())
    calls = confine_calls()
    network = "seccomp" if calls else "namespace" if leave_network() else ""
    if not calls:
        _limit(resource.RLIMIT_NPROC, 0, 0)  # of root it is not asked
    processes = "seccomp" if calls else "limit" if os.getuid() else ""
    return {"files": "landlock" if files else "", "network": network, "processes": processes}


def _limit(kind: int, soft: int, hard: int) -> None:
    _, highest = resource.getrlimit(kind)
    if highest != resource.RLIM_INFINITY:
        hard = min(hard, highest)
    with contextlib.suppress(ValueError, OSError):  # macOS does not limit the address space
        resource.setrlimit(kind, (min(soft, hard), hard))


def _readable() -> list[Path]:
    """Return the folders of Python, of what is installed beside it, and of the system's libraries."""
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()]
    system = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types"]
    return [Path(path) for path in {*python, *system} if path != "/"]


def _run(code: str, tests: str) -> None:
    """Run `tests` where `code` has been run, as one module that is not `__main__`."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module  # dataclasses and pickle look there
    exec(compile(code, "<candidate>", "exec"), module.__dict__)
    exec(compile(tests, "<tests>", "exec"), module.__dict__)


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "exit: it ended before its tests"
    with contextlib.suppress(Exception):  # its own __str__ may raise
        return f"{type(error).__name__}: {error}"[:LONGEST_REASON]
    return type(error).__name__


if __name__ == "__main__":
    main()
