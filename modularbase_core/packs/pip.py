"""pip, which installs and removes packs: the one of this environment, run as `python -m pip` and listened to.

Decides what pip's outcome means, in a sentence. Its own configuration and environment variables hold as ever.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from modularbase_core.errors import PipError

PATIENCE_SECONDS: Final = 10
"""How long pip may take to put things back after Ctrl-C, before it is asked once more."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of pip ended and what it wrote to standard error."""

    code: int
    stderr: str


Runner = Callable[[Sequence[str], bool], Outcome]
"""Runs a command; shows what it writes to standard output when the flag is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where pip looks, in addition to its own configuration."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    pre: bool = False

    def arguments(self) -> list[str]:
        """Return them as pip's options."""
        given = ["--index-url", self.index_url] if self.index_url else []
        for url in self.extra_index_urls:
            given += ["--extra-index-url", url]
        for place in self.find_links:
            given += ["--find-links", place]
        return [*given, "--pre"] if self.pre else given


class NotOffered(PipError):  # noqa: N818  # the name says what is wrong
    """No distribution of that name is offered. unreachable: whether an index could not be asked at all."""

    def __init__(self, message: str, output: str, *, unreachable: bool) -> None:
        super().__init__(message, output)
        self.unreachable = unreachable


class Pip:
    """The pip of this environment. shown: whether its own progress is shown on standard error."""

    def __init__(self, *, shown: bool = False, runner: Runner | None = None) -> None:
        self._shown, self._run_command = shown, runner or _run
        if runner is None and importlib.util.find_spec("pip") is None:
            raise PipError(
                f"{sys.prefix} has no pip, which installs packs; run `{sys.executable} -m ensurepip`, "
                "or install and remove the pack's distribution with the tool that made this environment"
            )

    def wheel(self, requirement: str, folder: Path, sources: Sources, *options: str) -> Path:
        """Download or build the wheel of one requirement into the empty `folder`, without its dependencies.

        Raises NotOffered when there is no such distribution, else PipError.
        """
        chosen = ["--no-deps", "--wheel-dir", str(folder), *sources.arguments(), *options]
        outcome = self._run("wheel", *chosen, "--", requirement)
        if outcome.code:
            raise _refusal(requirement, outcome)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise PipError(f"pip left no wheel for {requirement}; give a wheel instead", outcome.stderr)
        return wheels[0]

    def install(self, requirements: Sequence[str], sources: Sources, *options: str) -> None:
        """Install requirements; raises PipError."""
        outcome = self._run("install", *sources.arguments(), *options, "--", *requirements)
        if outcome.code:
            raise _refusal(" ".join(requirements), outcome)

    def uninstall(self, distributions: Sequence[str]) -> None:
        """Uninstall distributions; raises PipError."""
        outcome = self._run("uninstall", "--yes", "--", *distributions)
        if outcome.code:
            raise _refusal(" ".join(distributions), outcome)
        # pip leaves alone what it cannot uninstall, such as what the system's own tools installed, and says so
        for line in outcome.stderr.splitlines():
            if "Not uninstalling" in line or "Can't uninstall" in line:
                raise PipError(f"pip did not uninstall it: {_plain(line)}", outcome.stderr)

    def _run(self, command: str, *arguments: str) -> Outcome:
        # no questions: nobody sees them, as what pip says is read here
        fixed = ["--disable-pip-version-check", "--no-input"]
        return self._run_command([sys.executable, "-m", "pip", command, *fixed, *arguments], self._shown)


def _refusal(requirement: str, outcome: Outcome) -> PipError:
    """Turn what pip said into one sentence."""
    text = outcome.stderr
    unreachable = "after connection broken by" in text
    found = re.search(r"\(from versions: (.*)\)", text)
    if lacking := re.search(r"No matching distribution found for (\S+)", text):
        requirement = lacking[1]  # one of several, or what one of them needs
    if lacking and (found is None or found[1] == "none"):
        python = re.findall(r"([\w.!+]+) Requires-Python ([^;\s]+)", text)
        if python:
            version, wanted = python[-1]
            told = f"{requirement} {version} needs Python {wanted}; use such a Python or another version"
            return PipError(told, text)
        if unreachable:
            told = f"{requirement} cannot be looked up: the package index is out of reach; check the network, or name "
            return NotOffered(f"{told}another with --index-url or --find-links", text, unreachable=True)
        return NotOffered(
            f"no distribution {requirement!r} is offered; check the name and the index", text, unreachable=False
        )
    if found is not None:
        return PipError(
            f"no version fits {requirement}; there are {found[1]}"
            " (pre-releases are taken with --pre alone); ask for one of them",
            text,
        )
    if "externally-managed-environment" in text:
        return PipError(
            f"{sys.prefix} belongs to the operating system, where pip installs nothing; "
            "install modularbase in a virtual environment",
            text,
        )
    errors = [_plain(line) for line in text.splitlines() if line.lstrip().lower().startswith("error:")]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = (errors or lines or ["it said nothing"])[0 if errors else -1]
    return PipError(f"pip failed on {requirement} ({reason.rstrip('.')}); correct that and try again", text)


def _plain(line: str) -> str:
    return re.sub(r"^(error|warning):\s*", "", line.strip(), flags=re.IGNORECASE)


def _run(command: Sequence[str], shown: bool) -> Outcome:
    """Run a command; Ctrl-C, which reaches it too, is not told before it has put things back."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        stdout: int | IO[str] = sys.stderr if shown else subprocess.DEVNULL
        child = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        try:
            child.wait()
        except BaseException:
            try:
                child.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGINT)
                child.wait()
            raise
        stderr.seek(0)
        return Outcome(child.returncode, stderr.read())
