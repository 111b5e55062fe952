"""Programs that a model wrote, run against their tests in a confined process each (`confined`), within limits.

It guards against mistakes and against what models do by themselves; it is no vault for code written to break out.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Final

from modularbase_core.errors import ConfigError

_LOOK_SECONDS: Final = 0.1  # how often a run looks whether it has been called off
_LONGEST_MESSAGE: Final = 4096
_EARLY: Final = "exit: it ended before its tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use. seconds: by the clock; output_bytes: of standard output and error together."""

    seconds: float = 10.0
    cpu_seconds: int = 3
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20
    open_files: int = 64
    output_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for name, least in (("seconds", 0.1), ("cpu_seconds", 1), ("memory_bytes", 64 << 20), ("output_bytes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; use at least {least}")


@dataclass(frozen=True, slots=True)
class Program:
    """Code, and the tests that are run where it has been run."""

    code: str
    tests: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program did. passed: it came to the end of its tests.

    reason: else why not: timeout, output, crash, exit, or the error that it raised. held: what kept files, network
    and processes from it, an empty string for nothing.
    """

    passed: bool
    reason: str
    seconds: float
    output: str
    held: dict[str, str] = field(default_factory=dict)


class Sandbox:
    """Runs programs, some at once; `close` ends those that run."""

    def __init__(self, limits: Limits | None = None, workers: int | None = None) -> None:
        if os.name != "posix":
            raise ConfigError("programs are run only where they can be confined, which this system cannot; use Linux")
        self._limits = limits or Limits()
        self._workers = workers or os.cpu_count() or 1
        self._stopped = threading.Event()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every program that runs, and begin no other."""
        self._stopped.set()

    def run_all(self, programs: Sequence[Program]) -> Iterator[Outcome]:
        """Yield the programs' outcomes in order; an interruption ends those that run."""
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                yield from pool.map(self.run, programs)
            except BaseException:
                self.close()
                pool.shutdown(cancel_futures=True)
                raise

    def unconfined(self) -> list[str]:
        """Return what this system does not keep from programs, a few words each; nothing where all is held."""
        held = self.run(Program("", "")).held
        lacking = {
            "files": "they may read and write what you may",
            "network": "they may use the network",
            "processes": "they may start and signal processes",
        }
        return [told for kind, told in lacking.items() if not held.get(kind)]

    def run(self, program: Program) -> Outcome:
        """Run one program to its end, or to one of its limits."""
        if self._stopped.is_set():
            return Outcome(False, "called off", 0.0, "")
        nonce, begun = secrets.token_hex(16), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="modularbase-", ignore_cleanup_errors=True) as folder:
            told, tell = os.pipe()
            with os.fdopen(told, "rb", buffering=0) as message:
                try:
                    process = _start(folder, tell)
                finally:
                    os.close(tell)
                try:
                    given = {**asdict(program), "nonce": nonce, "limits": asdict(self._limits)}
                    watched = self._watch(process, message.fileno(), json.dumps(given).encode(), begun)
                finally:
                    _end(process)
        reason, passed, held = _verdict(watched, nonce, process.returncode)
        return Outcome(passed, reason, time.monotonic() - begun, watched.output.decode(errors="replace"), held)

    def _watch(self, process: subprocess.Popen[bytes], told: int, given: bytes, begun: float) -> _Watched:
        """Feed the process and read what it says, until it is through or over a limit."""
        watched, limits = _Watched(), self._limits
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended before it read
            process.stdin.write(given)
            process.stdin.close()
        with selectors.DefaultSelector() as selector:
            for source in (process.stdout.fileno(), told):
                os.set_blocking(source, False)
                selector.register(source, selectors.EVENT_READ)
            while told in selector.get_map():  # its end closes both, whatever else holds them
                if self._stopped.is_set():
                    watched.stop = "called off"
                elif time.monotonic() - begun > limits.seconds:
                    watched.stop = "timeout"
                elif len(watched.output) > limits.output_bytes:
                    watched.stop = "output"
                if watched.stop:
                    break
                for key, _ in selector.select(_LOOK_SECONDS):
                    source = key.fd
                    if not (some := os.read(source, 1 << 16)):
                        selector.unregister(source)
                    elif source == told:
                        watched.message += some[: _LONGEST_MESSAGE - len(watched.message)]
                    else:
                        watched.output += some
            with contextlib.suppress(OSError):  # what it said last
                watched.output += os.read(process.stdout.fileno(), 1 << 16)
        watched.output = watched.output[: limits.output_bytes]
        return watched


@dataclass(slots=True)
class _Watched:
    message: bytes = b""
    output: bytes = b""
    stop: str = ""


def _start(folder: str, tell: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-B", "-X", "utf8", "-m", "modularbase_core.evaluate.confined", str(tell)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        # numerical libraries start as many threads as there are cores, each with address space of its own
        env={"HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=(tell,),
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _verdict(watched: _Watched, nonce: str, code: int) -> tuple[str, bool, dict[str, str]]:
    """Tell why it did not pass, whether it passed, and what held it."""
    if watched.stop:
        return watched.stop, False, {}
    message: Any = None
    with contextlib.suppress(ValueError):
        message = json.loads(watched.message)
    if not isinstance(message, dict):
        if code == -signal.SIGXCPU:
            return "timeout", False, {}
        return (f"crash: {signal.Signals(-code).name}" if code < 0 else _EARLY), False, {}
    held = message.get("held")
    reason = str(message.get("reason", ""))
    passed = not reason and secrets.compare_digest(str(message.get("nonce", "")).encode(), nonce.encode())
    return (
        reason or ("" if passed else "exit: it ended before its tests"),
        passed,
        held if isinstance(held, dict) else {},
    )
