"""Pages whose payload tells which they are, a cold store for them, and programs that use it in a process of their own.

It imports no pytest, so that those programs start fast.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from modularbase_core.context.cold import ColdStore
from modularbase_core.context.record import PageRecord

MIB = 1 << 20
TOKENS = np.arange(16, dtype=np.int32)


def payload_of(index: int, version: int = 0, size: int = 8192) -> bytes:
    return (f"{index}.{version};".encode() * size)[:size]


def page(index: int, version: int = 0, **fields: Any) -> PageRecord:
    known = {"form": "int8", "tokens": TOKENS + index, "importance": 0.5, "pinned": False, "bounds": b"row"}
    return PageRecord(**{"index": index, "payload": payload_of(index, version), **known, **fields})


def opened(directory: Path, limit_mib: int = 64, **settings: Any) -> ColdStore:
    return ColdStore.open(directory, limit_bytes=limit_mib * MIB, **settings)


def written(directory: Path, count: int) -> None:
    with opened(directory) as store:
        store.put([page(index) for index in range(count)], {"state": b"kept"})


def flip(directory: Path, offset: int, bit: int = 0) -> None:
    with (directory / "data.mdb").open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def in_a_child(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `program`, which finds what is above here; its arguments are in sys.argv[1:]."""
    command = [sys.executable, "-c", f"import os, sys\nfrom cold_pages import *\n{program}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
