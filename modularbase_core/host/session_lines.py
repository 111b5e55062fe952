"""The lines of an exported session: one that tells of it, one a page, and one that vouches for them all.

Decides the format, which docs/sessions.md tells field by field. Files, and what a session is made from, are left to
`session_export` and `session_import`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modularbase_core.context.bounds import BoundsIndex
from modularbase_core.context.codec import FORMS, PageShapes, encoded_bytes
from modularbase_core.context.record import PageRecord
from modularbase_core.host.session_values import LARGEST_TOKEN, check_base, check_state, token_ids, whole_number
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.sdk.jsonfile import parse_json, shown

FORMAT: Final = "modularbase-session"
VERSION: Final = 1
LONGEST_LINE: Final = 64 << 20
"""Bytes; a page of the largest base in float32 takes some MB."""
LONGEST_BOUNDS: Final = 1 << 16

_HEADER: Final = ("format", "version", "name", "base", "state", "pages", "tokens")
_PAGE: Final = ("index", "form", "tokens", "importance", "pinned", "bounds", "payload")
_LAST: Final = ("pages", "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line. base, state: JSON as the session keeps it. tokens: the index of the one that would come next."""

    name: str
    base: Mapping[str, Any] | None
    state: Mapping[str, Any] | None
    pages: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """The last line. sha256: of all lines before it, in hex digits."""

    pages: int
    sha256: str


class WrongVersion(ValueError):  # noqa: N818  # the name says what is wrong
    """The lines are of a version that this release does not read."""


def header_line(header: Header) -> bytes:
    """Return the first line."""
    known = (FORMAT, VERSION, header.name, header.base, header.state, header.pages, header.tokens)
    return _line(dict(zip(_HEADER, known, strict=True)))


def page_line(page: PageRecord) -> bytes:
    """Return the line of a page; its padding is left out."""
    tokens = page.tokens[page.tokens >= 0].tolist()
    packed = (base64.b64encode(content).decode() for content in (page.bounds, page.payload))
    known = (page.index, page.form, tokens, page.importance, page.pinned, *packed)
    return _line(dict(zip(_PAGE, known, strict=True)))


def last_line(last: Last) -> bytes:
    """Return the last line."""
    return _line({"pages": last.pages, "sha256": last.sha256})


def read_header(line: bytes) -> Header:
    """Read the first line; raises WrongVersion, or ValueError whose text is a reason."""
    value = _object(line)
    if value.get("format") != FORMAT:
        raise ValueError("it does not begin as an exported session does")
    if value.get("version") != VERSION:
        raise WrongVersion(f"it is in version {shown(value.get('version'))} of the format")
    _check_keys(value, _HEADER)
    if not isinstance(value["name"], str):
        raise ValueError(f"the name is {shown(value['name'])}, not a string")
    check_base(value["base"])
    check_state(value["state"])
    return Header(
        name=value["name"],
        base=value["base"],
        state=value["state"],
        pages=whole_number("pages", value["pages"], LARGEST_TOKEN),
        tokens=whole_number("tokens", value["tokens"], LARGEST_TOKEN),
    )


def read_line(line: bytes) -> PageRecord | Last:
    """Read the line of a page, or the last one; raises ValueError, whose text is a reason."""
    value = _object(line)
    return _page(value) if "index" in value else _last(value)


class PageOrder:
    """Checks that pages follow each other as a conversation's do, and are as large as the base's or as each other.

    shapes: of the base's pages, None where it is not installed. end: the token that would come next.
    """

    def __init__(self, shapes: PageShapes | None) -> None:
        self.pages = self.end = 0
        self._payloads: dict[str, set[int]] = {}
        self._bounds: set[int] = set()
        if shapes is not None:
            self._payloads = {form: {encoded_bytes(shapes, form)} for form in FORMS}
            self._payloads["exact"].add(encoded_bytes(shapes, "exact", np.float32))
            self._bounds = {BoundsIndex(shapes.understanding_layers, shapes.kv_heads, shapes.head_size).row_bytes}

    def follow(self, page: PageRecord) -> None:
        """Take the next page; raises ValueError, whose text is a reason."""
        if self.end % PAGE_TOKENS:
            raise ValueError("a page follows one that is not full")
        if page.index * PAGE_TOKENS < self.end:
            raise ValueError(f"page {page.index} stands behind page {self.end // PAGE_TOKENS - 1}")
        size = len(page.payload)
        sizes = self._payloads.setdefault(page.form, set() if page.form == "exact" else {size})
        if not size or (sizes and size not in sizes):
            told = f", not {' or '.join(map(str, sorted(sizes)))}" if sizes else ""
            raise ValueError(f"page {page.index} ({page.form}) takes {size} bytes{told}")
        if page.bounds:
            self._bounds = self._bounds or {len(page.bounds)}
            if len(page.bounds) > LONGEST_BOUNDS or len(page.bounds) not in self._bounds:
                raise ValueError(f"the key bounds of page {page.index} take {len(page.bounds)} bytes")
        self.pages += 1
        self.end = page.index * PAGE_TOKENS + int((page.tokens >= 0).sum())


def _page(value: Mapping[str, Any]) -> PageRecord:
    _check_keys(value, _PAGE)
    if value["form"] not in FORMS:
        raise ValueError(f"the form is {shown(value['form'])}, not one of {', '.join(FORMS)}")
    ids = token_ids("tokens", value["tokens"])
    if not 0 < len(ids) <= PAGE_TOKENS:
        raise ValueError(f"it has {len(ids)} tokens, not 1 to {PAGE_TOKENS}")
    importance, pinned = value["importance"], value["pinned"]
    if isinstance(importance, bool) or not isinstance(importance, (int, float)) or not math.isfinite(importance):
        raise ValueError(f"the importance is {shown(importance)}, not a number")
    if not isinstance(pinned, bool):
        raise ValueError(f"pinned is {shown(pinned)}, not true or false")
    tokens = np.full(PAGE_TOKENS, -1, np.int32)
    tokens[: len(ids)] = ids
    return PageRecord(
        index=whole_number("the index", value["index"], LARGEST_TOKEN // PAGE_TOKENS),
        form=value["form"],
        tokens=tokens,
        importance=float(importance),
        pinned=pinned,
        bounds=_bytes("bounds", value["bounds"]),
        payload=_bytes("the payload", value["payload"]),
    )


def _last(value: Mapping[str, Any]) -> Last:
    _check_keys(value, _LAST)
    if not isinstance(value["sha256"], str):
        raise ValueError(f"sha256 is {shown(value['sha256'])}, not a string")
    return Last(pages=whole_number("pages", value["pages"], LARGEST_TOKEN), sha256=value["sha256"])


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    value = parse_json(line)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _check_keys(value: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if lacking := [key for key in keys if key not in value]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    if len(value) > len(keys):
        raise ValueError(f"it has the unknown key {shown(next(key for key in value if key not in keys))}")


def _bytes(what: str, value: object) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise ValueError(f"{what} is {shown(value)}, not base64")
