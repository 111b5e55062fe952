"""A process of speed.py: one engine with a network of Qwen2-0.5B's shape, timed as it is told, a line of JSON a time.

`machine` reads memory and multiplies bytes with kernels of TVM, as fast as that goes.

    python speed_worker.py '{"kind": "ours" | "llama" | "torch" | "compiled" | "machine", ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Protocol

import numpy as np


class Worker(Protocol):
    """An engine that is timed; all but `read` return seconds."""

    def read(self) -> int:
        """Return the bytes of weights that a step reads."""

    def prefill(self, tokens: int) -> float:
        """Begin anew with so many tokens, to the logits of the last."""

    def decode(self, steps: int) -> float:
        """Go on by so many tokens."""


class Machine:
    """What the machine itself can do, with as many threads."""

    def __init__(self, threads: int) -> None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
        import tvm
        from machine_kernels import multiply, read
        from modularbase_compiler.target import host_target

        from modularbase_core.device.target import cpu_target

        target = host_target(cpu_target())
        self._threads = threads
        self._read, self._multiply = (tvm.compile(kernel, target) for kernel in (read(threads), multiply(threads)))
        # as weights lie: aligned, and in memory of numpy, which asks for large pages
        raw = np.ones((threads << 28) + 64, np.uint8)
        self._memory = tvm.runtime.from_dlpack(raw[-raw.ctypes.data % 64 :][: threads << 28].reshape(threads, -1, 64))
        self._sums = tvm.runtime.tensor(np.zeros((threads, 16), np.int32))

    def read(self) -> float:
        """Return bytes a second, read from memory that no cache holds."""
        return (self._threads << 28) / _best(lambda: self._read(self._memory, self._sums), 5)

    def multiply(self) -> float:
        """Return operations a second (two for a product and its addition) of int8."""
        rounds = 1 << 20
        return self._threads * rounds * 8 * 128 / _best(lambda: self._multiply(rounds, self._sums), 3)


def _best(run: Any, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def made(kind: str, **how: Any) -> Any:
    """Make a worker. Each is imported by itself: llama.cpp's environment has neither torch nor TVM."""
    if kind == "machine":
        return Machine(**how)
    if kind == "ours":
        from speed_ours import Ours

        return Ours(**how)
    import speed_peers

    return {"llama": speed_peers.LlamaCpp, "torch": speed_peers.Torch, "compiled": speed_peers.Compiled}[kind](**how)


def main(described: dict[str, Any]) -> None:
    """Load, say so, then do as each line says."""
    worker = made(**described)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"result": getattr(worker, order.pop("do"))(**order)}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
