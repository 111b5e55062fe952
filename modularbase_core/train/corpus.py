"""Training data as records, whatever kind of files it lies in, and samples of them.

Which files an entry names and how each kind is read is left to `train.readers`, packing to `train.packing`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from modularbase_core.errors import DataError
from modularbase_core.train.readers.files import Found, find_files
from modularbase_core.train.readers.json_lines import first_message, read_json_lines
from modularbase_core.train.readers.opening import Meter
from modularbase_core.train.readers.record import Message, Record

__all__ = [
    "Message",
    "Record",
    "first_message",
    "read_found",
    "read_json_lines",
    "read_records",
    "sample_characters",
]

Tell = Callable[[str], None]
"""Takes a sentence on a file that was left out."""


def read_records(entry: Path, tell: Tell | None = None) -> Iterator[Record]:
    """Yield the records of a file, of what is readable in a folder, or of what a glob matches.

    tell: is told of files in a folder that are no UTF-8 text and are left out. Raises DataError, in one sentence that
    names the file and line, for what is wrong with anything else, and when there is no record at all.
    """
    any_ = False
    for found in find_files(entry):
        for record in read_found(found, tell):
            any_ = True
            yield record
    if not any_:
        raise DataError(f"{entry} holds no record with any text; check that it is the right one")


def read_found(found: Found, tell: Tell | None = None, meter: Meter | None = None) -> Iterator[Record]:
    """Yield the records of one file; code in a folder that is no UTF-8 text is left out, and `tell` told so."""
    try:
        yield from found.read(meter)
    except DataError as error:
        if found.named or not found.is_code:
            raise
        if tell is not None:
            tell(f"left out: {error}")


def sample_characters(paths: list[Path], characters: int, seed: int) -> Iterator[str]:
    """Yield texts of the files, whole records in random order, until `characters` is reached."""
    texts = [record.whole for path in paths for record in read_records(path)]
    random.Random(seed).shuffle(texts)
    taken = 0
    for text in texts:
        if taken >= characters:
            return
        taken += len(text)
        yield text
