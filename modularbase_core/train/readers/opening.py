"""Open a file of text, unpacked by its suffix; whatever is wrong with its bytes becomes one DataError sentence.

A file is read as a stream: what it holds never lies in memory whole.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, cast

from modularbase_core.errors import DataError

Meter = Callable[[int], None]
"""Called with the number of bytes, as they lie on the disk, that were read now."""

PACKED: Final = (".xz", ".gz")
LONGEST_CHARACTERS: Final = 32 << 20
"""Of one record, and of a file that is one record."""
_CHUNK_BYTES: Final = 1 << 20
_STEP_BYTES: Final = 8192
"""No more than text is read by, so that what is wrong with a file further on stays out of sight."""
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_HAN: Final = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")


@contextmanager
def open_text(path: Path, meter: Meter | None = None) -> Iterator[IO[str]]:
    """Open a UTF-8 file, with or without a byte order mark, for reading.

    Raises DataError, also while it is read, when it is missing, unreadable, truncated or of another encoding.
    """
    try:
        try:
            with open_bytes(path, meter) as file, io.TextIOWrapper(cast(IO[bytes], file), encoding="utf-8-sig") as text:
                yield text
        except UnicodeDecodeError as error:
            raise DataError(_wrong_encoding(path)) from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; check the data folder and the recipe's file names") from error
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        told = "it ends too early" if isinstance(error, EOFError) else str(error)
        raise DataError(f"{path} is damaged or no {path.suffix} file ({told}); fetch or pack it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check what it is") from error


@contextmanager
def open_bytes(path: Path, meter: Meter | None = None) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, unpacked by its suffix; raises what the libraries raise."""
    with _Metered(path, meter) as raw, io.BufferedReader(raw, _CHUNK_BYTES) as packed:
        if path.suffix == ".xz":
            with lzma.open(packed) as file:
                yield file
        elif path.suffix == ".gz":
            with gzip.open(packed) as file:
                yield cast(io.BufferedIOBase, file)
        else:
            yield packed


def read_whole(path: Path, file: IO[str]) -> str:
    """Read what is left of a file that is one record; raises DataError when it is too long or no text."""
    text = file.read(LONGEST_CHARACTERS + 1)
    if len(text) > LONGEST_CHARACTERS:
        raise DataError(
            f"{path} has more than {LONGEST_CHARACTERS:,} characters, too many for one document; "
            "split it, or name it .txt and it is cut into documents"
        )
    check_text(text, str(path))
    return text


def check_text(text: str, where: str) -> None:
    """Raise DataError when a text holds NUL characters, as what is binary or UTF-16 does."""
    if "\0" in text:
        raise DataError(f"{where} holds NUL bytes, so it is binary or UTF-16; save it as UTF-8, or leave it out")


class _Metered(io.FileIO):
    """A raw file that tells how much of it was read."""

    def __init__(self, path: Path, meter: Meter | None) -> None:
        super().__init__(path)
        self._meter = meter

    # Any buffer; typeshed's name for it is not there at run time
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = cast(int, super().readinto(buffer))
        if self._meter is not None and count:
            self._meter(count)
        return count


def _wrong_encoding(path: Path) -> str:
    """Say where a file stops being UTF-8 and what it looks like; reads it once more up to there."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, line, head = 0, 1, b""
    with open_bytes(path) as file:
        while chunk := file.read1(_STEP_BYTES):
            head = head or chunk[:4]
            waiting = decoder.getstate()[0]
            try:
                line += decoder.decode(chunk).count("\n")
            except UnicodeDecodeError as error:
                return _fault(path, waiting + chunk, done - len(waiting), error.start, line, head)
            done += len(chunk)
    return f"{path} ends in the middle of a UTF-8 character, at byte {done}; it was cut off: make or fetch it again"


def _fault(path: Path, content: bytes, offset: int, start: int, line: int, head: bytes) -> str:
    around = content[max(0, start - 2000) : start + 2000]
    number = line + content[:start].count(b"\n")
    return f"{path}:{number} is not UTF-8 at byte {offset + start} ({_looks_like(head, around)}); save it as UTF-8"


def _looks_like(head: bytes, around: bytes) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return f"it is {name}"
    if _CONTROLS.search(around):
        return "it looks binary"
    chinese = around.decode("gb18030", "ignore")
    if chinese and len(_HAN.findall(chinese)) > 0.6 * sum(character > "\x7f" for character in chinese):
        return "it looks like GB18030 or GBK"
    return "it looks like Latin-1 or Windows-1252"
