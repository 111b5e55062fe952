"""The command line: where arguments, the environment and the terminal are read, and errors become one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, TextIO, cast

import click

from modularbase_core.cli.group import modularbase
from modularbase_core.errors import ModularBaseError

__all__ = ["main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count it."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 well, 1 an error of ours, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a narrow terminal encoding must not end an answer
    if sys.stdout is None:
        sys.exit(_unwritable("it is closed"))
    output = _Output(sys.stdout)
    try:
        with redirect_stdout(cast(TextIO, output)):
            code = _run(arguments)
            output.flush()
    except OSError:
        if output.fault is None:
            raise
        code = _unwritable(output.fault)
    finally:
        if output.fault is not None:
            # Python writes what is left once more when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    sys.exit(code)


class _Output:
    """Standard output that remembers why it could not be written, to tell that from every other OSError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.fault: str | None = None

    # Any: whatever attribute a stream has
    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._watch():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._watch():
            self._stream.flush()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = error.strerror or type(error).__name__
            raise


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = modularbase.main(arguments, prog_name="modularbase", standalone_mode=False)
    except ModularBaseError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _unwritable(reason: str) -> int:
    click.echo(f"error: standard output cannot be written ({reason})", err=True)
    return 1
