"""A text file of any length, in pieces that are never whole in memory."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from modularbase_core.errors import InputError

PIECE_BYTES: Final = 32 << 10
"""About so much at once; a piece ends with a line where it can."""


def check_text(file: Path) -> int:
    """Return the size of a text file in bytes; raises InputError where it is empty, unreadable or not UTF-8."""
    decoder, at, some = codecs.getincrementaldecoder("utf-8")(), 0, False
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                some = bool(decoder.decode(block).strip()) or some
                at += len(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 (near byte {at + error.start}); convert it with iconv") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check its name and permissions") from error
    if not some:
        raise InputError(f"{file} is empty; name a text")
    return at


def pieces(file: Path, tell: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of a file that was checked; `tell` hears how many bytes were taken each time before."""
    rest, done = "", 0
    with file.open(encoding="utf-8", newline="") as stream:
        while block := stream.read(PIECE_BYTES):
            tell(done)
            done += len(block.encode())
            text = rest + block
            cut = text.rfind("\n") + 1 or len(text)
            rest = text[cut:]
            yield text[:cut]
    if rest:
        yield rest
    tell(done)
