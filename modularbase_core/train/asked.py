"""What the users of new records ask first, of every kind of file: the messages that routing is to find."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from modularbase_core.errors import DataError
from modularbase_core.train.encoding import records_of
from modularbase_core.train.readers.record import Record
from modularbase_core.train.recipe import Source
from modularbase_core.train.sections import messages_of

BEGINNING_CHARACTERS: Final = 400
"""Of a text without headings, so much stands for what is asked of it."""


def messages_asked(sources: Sequence[Source], data: Path, *, most: int, seed: int) -> list[str]:
    """Return at most `most` messages of the sources' records together, each once, in random order.

    Of a conversation that is what its user says first; of a page its headings and the first sentences under them; of
    another text its beginning. Raises DataError where there is none.
    """
    records = [record for source in sources for record in records_of(source, data)]
    messages = list(dict.fromkeys(text for record in records for text in _of(record) if text.strip()))
    if not messages:
        files = ", ".join(name for source in sources for name in source.files)
        raise DataError(f"nobody asks anything in {files}; give records with a message of the user")
    random.Random(seed).shuffle(messages)
    return messages[:most]


def _of(record: Record) -> Iterator[str]:
    if record.text is None:
        yield next((one["content"] for one in record.messages if one["role"] == "user"), "")
        return
    headings = list(messages_of(record.text)) if record.language != "code" else []
    yield from headings or [record.text[:BEGINNING_CHARACTERS]]
