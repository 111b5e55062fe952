"""The base's byte-level BPE: text to token ids, and ids to the bytes they stand for.

What a user types never becomes a control token: those enter by id, through `controls` (see `template`).
Cutting the bytes of a running answer into text is left to `stream`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modularbase_core.errors import InputError, TokenizerError
from modularbase_core.sdk.template import ChatTemplate
from modularbase_core.text.controls import Controls, controls_of
from modularbase_core.text.template import OURS

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A loaded `tokenizer.json`; make one with `load`."""

    def __init__(self, library: tokenizers.Tokenizer, token_bytes: list[bytes], controls: Controls) -> None:
        self._library = library
        self._token_bytes = token_bytes
        self.controls = controls
        """The ids that the chat template puts around messages."""

    @classmethod
    def load(cls, path: Path, template: ChatTemplate = OURS) -> Tokenizer:
        """Read a `tokenizer.json` of the `tokenizers` library.

        Raises TokenizerError if it is missing, unreadable, not byte-level or without the template's control tokens.
        """
        import tokenizers  # not above: listing packs and `--help` do without it

        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise TokenizerError(f"cannot read the tokenizer {path}: {reason}; install the base pack again") from error
        except UnicodeDecodeError as error:
            raise TokenizerError(f"the tokenizer {path} is not UTF-8 text; install the base pack again") from error
        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception for every kind of damage
            raise TokenizerError(f"the tokenizer {path} is damaged ({error}); install the base pack again") from error
        library.encode_special_tokens = True  # a control token in a text is split like any other text
        library.no_truncation()
        library.no_padding()
        return cls(library, _bytes_of_tokens(library, path), controls_of(library, template, str(path)))

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id, control tokens included."""
        return len(self._token_bytes)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; a control token in it is plain text.

        Raises InputError on a lone surrogate, which is no character of UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"character {error.start + 1} of the text is the lone surrogate U+{ord(text[error.start]):04X}; "
                "give valid UTF-8"
            ) from error
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for, perhaps part of a character; none for a control token.

        None either for an id past the vocabulary: a network may have spare rows in its embedding.
        """
        assert token_id >= 0, f"token id {token_id}"
        return self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of ids, control tokens left out and broken UTF-8 replaced by U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def control(self, name: str) -> int:
        """Return the id of a control token by its name."""
        number: int | None = self._library.token_to_id(name)
        assert number is not None, f"no token {name!r}"
        return number


def _bytes_of_tokens(library: tokenizers.Tokenizer, path: Path) -> list[bytes]:
    added = library.get_added_tokens_decoder()
    vocabulary = library.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        if i in added:
            table[i] = b"" if added[i].special else added[i].content.encode("utf-8")
            continue
        try:
            table[i] = bytes(_BYTE_OF_CHARACTER[character] for character in token)
        except KeyError as error:
            raise TokenizerError(
                f"the tokenizer {path} is not byte-level: token {i} is {token!r}; train one with `modularbase train`"
            ) from error
    lacking = set(range(256)) - {piece[0] for piece in table if len(piece) == 1}
    if lacking:
        raise TokenizerError(f"the tokenizer {path} has no token for {len(lacking)} of 256 bytes; train it again")
    return table


def _alphabet() -> dict[str, int]:
    """Invert the byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER: Final = _alphabet()
