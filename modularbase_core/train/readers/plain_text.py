"""Read a text file as documents: cut where it says that one ends, or else at blank lines when one is long enough.

An end is a form feed, a line <|endoftext|>, or two blank lines in a row after more than a heading. A line of any
length is read in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from modularbase_core.train.readers.opening import Meter, check_text, open_text
from modularbase_core.train.readers.record import Record

ENOUGH_CHARACTERS: Final = 16_000
"""After so many a document ends at the next blank line: some 4,000 tokens of English."""
HEADING_CHARACTERS: Final = 200
"""So few are not a document of their own for two blank lines that follow."""
MOST_CHARACTERS: Final = 64_000
"""Of a document that has no blank line."""
END_OF_TEXT: Final = "<|endoftext|>"


def read_text_records(path: Path, meter: Meter | None = None) -> Iterator[Record]:
    """Yield the documents of a text file; raises DataError when it is no UTF-8 text."""
    with open_text(path, meter) as file:
        for document in cut(_pieces(file)):
            check_text(document, str(path))
            yield Record(document, (), "", path.name)


def cut(pieces: Iterator[str]) -> Iterator[str]:
    """Join lines, and pieces of long lines, to documents without empty lines around them; none is blank."""
    held: list[str] = []
    size = blanks = 0
    for piece in pieces:
        ends = piece.strip() == END_OF_TEXT or piece.startswith("\f")
        blanks = blanks + 1 if not piece.strip() and not ends else 0
        enough = (blanks > 1 and size > HEADING_CHARACTERS) or (blanks and size >= ENOUGH_CHARACTERS)
        if ends or enough or size + len(piece) > MOST_CHARACTERS:
            yield from _document(held)
            held, size = [], 0
        if not ends or piece.startswith("\f"):
            held.append(piece.lstrip("\f"))
            size += len(piece)
    yield from _document(held)


def _document(held: list[str]) -> Iterator[str]:
    text = "".join(held).strip("\n")
    if text.strip():
        yield text


def _pieces(file: IO[str]) -> Iterator[str]:
    """Yield lines, long ones in pieces that end after a blank where they have any."""
    rest = ""
    while piece := rest + file.readline(MOST_CHARACTERS - len(rest)):
        rest = ""
        if len(piece) == MOST_CHARACTERS and not piece.endswith("\n"):
            at = piece.rfind(" ", MOST_CHARACTERS // 2) + 1 or MOST_CHARACTERS
            piece, rest = piece[:at], piece[at:]
        yield piece
