"""Read a file as one document: a Markdown page without its front matter, or a file of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modularbase_core.train.readers.opening import Meter, open_text, read_whole
from modularbase_core.train.readers.record import Record

CODE: Final = "code"
"""The language of records of code."""
_FRONT_MATTER: Final = re.compile(
    r"\A(?:---[ \t]*\n.*?^(?:---|\.\.\.)|\+\+\+[ \t]*\n.*?^\+\+\+)[ \t]*$\n?", re.DOTALL | re.M
)


def read_page_records(path: Path, meter: Meter | None = None) -> Iterator[Record]:
    """Yield a Markdown page without its front matter (YAML or TOML), headings and all; nothing if it is blank."""
    text = _FRONT_MATTER.sub("", _read(path, meter), count=1).strip()
    if text:
        yield Record(text, (), "", path.name)


def read_code_records(path: Path, meter: Meter | None = None) -> Iterator[Record]:
    """Yield a file of code as it is; nothing if it is blank."""
    text = _read(path, meter)
    if text.strip():
        yield Record(text, (), CODE, path.name)


def _read(path: Path, meter: Meter | None) -> str:
    with open_text(path, meter) as file:
        return read_whole(path, file)
