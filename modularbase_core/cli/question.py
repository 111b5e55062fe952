"""What a user asks: text that is not empty, not too long, and UTF-8."""

from __future__ import annotations

import sys
from typing import Final

from modularbase_core.errors import InputError

_STDIN: Final = "standard input"


def read_question(max_bytes: int) -> str:
    """Read all of standard input; raises InputError when it is closed, empty, too long or not UTF-8."""
    if sys.stdin is None:
        raise InputError(f"{_STDIN} is closed; write a question")
    content = sys.stdin.buffer.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise _too_long(_STDIN, "more than", max_bytes, max_bytes)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{_STDIN} is not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}); convert it with iconv"
        ) from error
    return check_question(text, _STDIN, max_bytes)


def check_question(text: str, source: str, max_bytes: int) -> str:
    """Return `text`; raises InputError when it is empty, too long or was not UTF-8."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # the shell's bytes come as lone surrogates
        raise InputError(f"{source} is not UTF-8 (at character {error.start}); convert it with iconv") from error
    if not text.strip():
        raise InputError(f"{source} is empty; write a question")
    if size > max_bytes:
        raise _too_long(source, "", size, max_bytes)
    return text


def _too_long(source: str, more: str, size: int, max_bytes: int) -> InputError:
    size_text = f"{more} {size}".strip()
    return InputError(
        f"{source} has {size_text} bytes, at most {max_bytes} are taken; shorten it or raise max_prompt_bytes"
    )
