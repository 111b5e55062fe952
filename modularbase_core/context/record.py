"""A page as the cold store keeps it: a small row to search by, and its payload, both under checksums.

Decides the bytes of a row. A checksum covers the page's number too: what lies under another page's key is no page.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from modularbase_core.context.codec import FORMS
from modularbase_core.context.holdings import Held
from modularbase_core.sdk.architecture import PAGE_TOKENS

FORMAT: Final = b"1"
"""What a store says it is written in; another number for every change of what follows and of the codec."""

# checksum of the row, checksum of the payload, form, pinned, tokens that are not padding, importance, page's tokens
_ROW: Final = struct.Struct(f"<IIBBBxd{4 * PAGE_TOKENS}s")
_SUM: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageEntry:
    """What is known of a page without its payload.

    index: absolute page number. form: one of `codec.FORMS`. tokens: [16] int32, -1 where the page is not full.
    importance: the least important pages go first when the store is full. pinned: stays as it is whatever happens.
    bounds: what a search reads, of any length up to a kilobyte.
    """

    index: int
    form: str
    tokens: NDArray[np.int32]
    importance: float
    pinned: bool
    bounds: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageRecord(PageEntry):
    """A page: what is known of it and `payload`, its numbers in its form."""

    payload: bytes


MOST_PAGES: Final = 1 << 26
"""Of a conversation: a thousand million tokens. A number beyond is no page's, whatever its checksum says."""


def page_key(index: int) -> bytes:
    """Return the key of a page, in whose order the pages lie."""
    return index.to_bytes(8, "big")


def page_index(key: bytes) -> int:
    """Return the number of the page that lies under `key`."""
    return int.from_bytes(key, "big")


def write_row(record: PageRecord) -> bytes:
    """Return the row of `record`, which vouches for itself and for the payload."""
    key, tokens = page_key(record.index), record.tokens.astype("<i4")
    assert tokens.shape == (PAGE_TOKENS,), f"page {record.index} has tokens of shape {tokens.shape}"
    count, form = int((tokens >= 0).sum()), FORMS.index(record.form)
    known = _ROW.pack(0, checksum(key, record.payload), form, record.pinned, count, record.importance, tokens.tobytes())
    return seal(key, known[_SUM.size :] + record.bounds)


def read_held(key: bytes, row: bytes) -> Held | None:
    """Return what is kept in memory of a row; None if it is not what was written under `key`."""
    if len(key) != 8 or page_index(key) >= MOST_PAGES or len(row) < _ROW.size or unseal(key, row) is None:
        return None
    _, _, form, pinned, count, importance, _ = _ROW.unpack_from(row)
    return Held(FORMS[form], count, importance, bool(pinned))


def read_entry(key: bytes, row: bytes) -> PageEntry | None:
    """Return the entry of a row; None if it is not what was written under `key`."""
    return PageEntry(**_fields(key, row)) if read_held(key, row) else None


def read_record(key: bytes, row: bytes, payload: bytes | None) -> PageRecord | None:
    """Return the page; None if row or payload is not what was written under `key`."""
    if payload is None or read_held(key, row) is None or _ROW.unpack_from(row)[1] != checksum(key, payload):
        return None
    return PageRecord(**_fields(key, row), payload=payload)


def seal(key: bytes, content: bytes) -> bytes:
    """Return `content` behind its checksum."""
    return _SUM.pack(checksum(key, content)) + content


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Return the content of what `seal` returned for the same key; None if it is anything else."""
    content = sealed[_SUM.size :]
    return content if sealed[: _SUM.size] == _SUM.pack(checksum(key, content)) else None


def checksum(key: bytes, content: bytes) -> int:
    """Return the CRC-32 of both."""
    return zlib.crc32(content, zlib.crc32(key))


class _Fields(TypedDict):
    index: int
    form: str
    tokens: NDArray[np.int32]
    importance: float
    pinned: bool
    bounds: bytes


def _fields(key: bytes, row: bytes) -> _Fields:
    _, _, form, pinned, _, importance, tokens = _ROW.unpack_from(row)
    return _Fields(
        index=page_index(key),
        form=FORMS[form],
        tokens=np.frombuffer(tokens, "<i4").astype(np.int32, copy=False),
        importance=importance,
        pinned=bool(pinned),
        bounds=row[_ROW.size :],
    )
