"""Find what a recipe's `files` entry names, a file, a folder or a glob, and which reader takes each file.

In a folder only what is surely text of its author is read: nothing hidden, vendored, generated or huge, no binary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Final

from modularbase_core.errors import DataError
from modularbase_core.train.readers.json_lines import read_json_records
from modularbase_core.train.readers.opening import PACKED, Meter
from modularbase_core.train.readers.pages import read_code_records, read_page_records
from modularbase_core.train.readers.plain_text import read_text_records
from modularbase_core.train.readers.record import Record

Reader = Callable[[Path, Meter | None], Iterator[Record]]

SHARDS_FILE: Final = "shards.json"
"""In a folder of shards, which are no texts."""
JSON_LINES: Final = (".jsonl", ".ndjson", ".json")
PLAIN: Final = (".txt", ".text")
PAGES: Final = (".md", ".markdown", ".rst")
CODE: Final = frozenset(
    (
        *(".py", ".pyi", ".rb", ".php", ".pl", ".pm", ".lua", ".jl", ".r", ".sh", ".bash", ".zsh", ".fish", ".ps1"),
        *(".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".cuh", ".m", ".mm", ".rs", ".go", ".zig", ".swift"),
        *(".java", ".kt", ".kts", ".scala", ".groovy", ".gradle", ".cs", ".fs", ".vb", ".dart", ".nim", ".s", ".asm"),
        *(".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".vue", ".svelte", ".css", ".scss", ".sql", ".graphql"),
        *(".hs", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".scm", ".v", ".sv", ".vhd"),
        *(".proto", ".cmake", ".tf", ".toml", ".tex"),
    )
)
LARGEST_CODE_BYTES: Final = 1 << 20
"""A larger file of code is generated or data."""
LEFT_OUT: Final = frozenset(
    (
        *("node_modules", "bower_components", "vendor", "vendored", "third_party", "third-party"),
        *("site-packages", "dist-packages", "__pycache__", "venv", "build", "dist"),
    )
)
"""Folders that hold what others wrote or a machine made."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file that can be read; named: an entry names it itself, so that anything wrong with it is an error."""

    path: Path
    reader: Reader
    named: bool

    @property
    def is_code(self) -> bool:
        """Whether it is a file of code."""
        return self.reader is read_code_records

    def read(self, meter: Meter | None = None) -> Iterator[Record]:
        """Yield its records; raises DataError."""
        return self.reader(self.path, meter)


def find_files(entry: Path) -> list[Found]:
    """Return what an entry names, in order of their names.

    Raises DataError when that is nothing, or a file of a kind that no reader takes.
    """
    if entry.is_dir():
        found = list(_walk(entry))
        if (entry / SHARDS_FILE).exists():
            raise DataError(f"{entry} holds shards, from which the [[mix]] of a recipe alone learns; give the texts")
        if not found:
            raise DataError(f"{entry} holds no file that can be read; give .jsonl, .txt, .md, .rst or code")
        return found
    return _matches(entry) if not entry.exists() and has_magic(str(entry)) else [_named(entry)]


def _matches(pattern: Path) -> list[Found]:
    try:
        paths = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError as error:
        raise DataError(f"{pattern} is no pattern of file names ({error}); ** stands for folders, alone") from error
    found = [one for path in paths for one in _matched(path)]
    if not found:
        raise DataError(f"no file that can be read matches {pattern}; check the data folder and the recipe's names")
    return found


def _matched(path: Path) -> Iterator[Found]:
    if path.is_dir():
        yield from _walk(path)
    elif (reader := _reader(path)) is not None:
        yield Found(path, reader, named=True)


def _named(path: Path) -> Found:
    if not path.exists():
        raise DataError(f"{path} does not exist; check the data folder and the recipe's file names")
    reader = _reader(path)
    if reader is None:
        raise DataError(
            f"{path} is of no kind that is read; give .jsonl, .txt, .md, .rst or code, plain or packed as .xz or .gz"
        )
    return Found(path, reader, named=True)


def _reader(path: Path) -> Reader | None:
    packed = path.suffix in PACKED
    suffix = (Path(path.stem) if packed else path).suffix.lower()
    if suffix in JSON_LINES or (packed and not suffix):
        return read_json_records
    if suffix in PLAIN:
        return read_text_records
    if suffix in PAGES:
        return read_page_records
    return read_code_records if suffix in CODE else None


def _walk(folder: Path) -> Iterator[Found]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_out(name))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith(".") or path.suffix == ".json" or not path.is_file():
                continue  # plain .json in a folder is settings more often than records
            reader = _reader(path)
            if reader is not None and not (reader is read_code_records and _is_generated(path)):
                yield Found(path, reader, named=False)


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name in LEFT_OUT or name.endswith(".egg-info")


def _is_generated(path: Path) -> bool:
    return ".min." in path.name or path.stat().st_size > LARGEST_CODE_BYTES
