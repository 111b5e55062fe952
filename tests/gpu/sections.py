"""The sections of the script, each a process of its own, so that a fault in one spoils no other.

A section takes `Options` and returns plain JSON values; "ok" in them is false where a check failed. The same code runs
on a CPU, where it is tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from gpu.checks import programs, turns
from gpu.options import Options
from gpu.peers import peers
from gpu.timings import bandwidth, memory, speed, swap

from modularbase_core.device.artefact import artefacts_directory

SECTIONS: Final[dict[str, Callable[[Options], dict[str, Any]]]] = {
    "programs": programs,
    "turns": turns,
    "bandwidth": bandwidth,
    "speed": speed,
    "swap": swap,
    "memory": memory,
    "peers": peers,
}


def run(name: str, options: Options) -> int:
    """Run a section and print its values as the last line."""
    artefacts_directory(options.cache).mkdir(parents=True, exist_ok=True)
    print(json.dumps(SECTIONS[name](options)), flush=True)
    return 0
