"""Turn records into token ids with a loss mask, and lay them end to end.

Every document begins with the template's border token (ours: <|begin|>), so document borders are in the ids
themselves. What text goes in, and how much of each, is the recipe's; windows are cut in `packing`.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.text.controls import Controls
from modularbase_core.train.corpus import Record, read_records
from modularbase_core.train.readers.files import find_files
from modularbase_core.train.readers.opening import PACKED
from modularbase_core.train.recipe import Source
from modularbase_core.train.sections import answers_of
from modularbase_core.train.tokens import controls_in

Document = tuple[Sequence[int], Sequence[bool]]
"""Token ids from the border token on, and where the loss counts."""

LARGEST_BYTES: Final = 2 << 30
"""Of a source's text, which is read into memory whole; shards are not."""
UNPACKED: Final = 4
"""How many times larger packed text is when it is unpacked."""


class Material(Protocol):
    """What windows are cut from, pass by pass."""

    def parts(self, lap: int) -> Iterator[Documents]:
        """Yield what pass `lap` goes through, in parts that are packed one by one; it depends on the pass alone."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents end to end: document d owns ids[starts[d]:starts[d+1]].

    ids: [n] uint16, or uint32 for a larger vocabulary; learn: [n] bool, true where the loss counts; starts: [d+1]
    int64; whole: [d] bool, true for a document that teaches nothing when it is cut.
    """

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    learn: NDArray[np.bool_]
    starts: NDArray[np.int64]
    whole: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def parts(self, lap: int) -> Iterator[Documents]:
        """Yield all in one part, the same in every pass."""
        yield self


class Encoder:
    """Encodes records by the chat template; `response_only` limits the loss to what the assistant says.

    controls: the ids of another template than ours.
    """

    def __init__(self, tokenizer: Tokenizer, *, response_only: bool, controls: Controls | None = None) -> None:
        self._tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # a control token in the text stays text
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._controls = controls or controls_in(tokenizer)
        self._response_only = response_only

    def encode(self, record: Record) -> tuple[list[int], list[bool]]:
        """Return the ids of a record and where the loss counts."""
        return self._around(record, iter([self._ids(text) for text in _texts(record)]))

    def encode_all(self, records: Sequence[Record]) -> list[tuple[list[int], list[bool]]]:
        """Return what `encode` does of each record; the tokenizer works on as many cores as there are."""
        texts = [text for record in records for text in _texts(record)]
        bodies = (one.ids for one in self._tokenizer.encode_batch(texts, add_special_tokens=False))
        return [self._around(record, bodies) for record in records]

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
        """Return the ids of a text in pieces, and where the loss counts: on the pieces that say so, and on the end."""
        ids, learn = [self._controls.border], [False]
        for text, counts in pieces:
            body = self._ids(text)
            ids, learn = [*ids, *body], [*learn, *[counts] * len(body)]
        end = self._controls.text_end
        return [*ids, *end], [*learn, *[True] * len(end)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _around(self, record: Record, bodies: Iterator[list[int]]) -> tuple[list[int], list[bool]]:
        """Put the template around the ids of a record's texts, as many of `bodies` as it has."""
        around = self._controls
        if record.text is not None:
            body = next(bodies)
            return [around.border, *body, *around.text_end], [False, *[True] * (len(body) + len(around.text_end))]
        begin = around.begin[1:] if around.begin[:1] == (around.border,) else around.begin
        ids = [around.border, *begin]
        if record.messages[0]["role"] != "system":
            ids += around.system
        learn = [False] * len(ids)
        for message, body in zip(record.messages, bodies, strict=False):
            role = message["role"]
            said = role == "assistant" or not self._response_only
            ids += [*around.opening[role], *body, *around.closing[role]]
            learn += [not self._response_only] * len(around.opening[role])
            learn += [said] * (len(body) + len(around.closing[role]))
        return ids, learn

    def snippet(self, text: str, tokens: int, random_: random.Random) -> str:
        """Return a stretch of `text` of about `tokens` tokens."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        first = random_.randrange(max(1, len(offsets) - tokens))
        return text[offsets[first][0] : offsets[min(first + tokens, len(offsets)) - 1][1]] if offsets else text


def _texts(record: Record) -> list[str]:
    return [record.text] if record.text is not None else [message["content"] for message in record.messages]


def control_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a control token; raises DataError when the tokenizer lacks it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"the tokenizer lacks the control token {token}; train it with `modularbase train`")
    return number


def encode_sources(
    sources: Sequence[Source],
    data: Path,
    tokenizer: Tokenizer,
    *,
    response_only: bool,
    seed: int,
    controls: Controls | None = None,
) -> list[Document]:
    """Encode the sources' records, each source's in random order until its share is full."""
    encoder = Encoder(tokenizer, response_only=response_only, controls=controls)
    documents: list[Document] = []
    for source in sources:
        records = records_of(source, data)
        random.Random(seed).shuffle(records)
        documents.extend(_take(records, source.tokens, encoder))
    return documents


def records_of(source: Source, data: Path) -> list[Record]:
    """Read the records of a source that match it, in their order; raises DataError when there is none, or too many."""
    _check_size(source, data)
    records = [record for name in source.files for record in read_records(data / name)]
    if source.sections:
        records = [answer for record in records for answer in answers_of(record)]
    if source.languages:
        records = [record for record in records if record.language in source.languages]
    if not records:
        raise DataError(f"no record in {', '.join(source.files)} matches the recipe")
    return records


def _check_size(source: Source, data: Path) -> None:
    """Refuse what would not fit memory, as records are shuffled there."""
    files = [found.path for name in source.files for found in find_files(data / name)]
    unpacked = sum(path.stat().st_size * (UNPACKED if path.suffix in PACKED else 1) for path in files)
    if unpacked > LARGEST_BYTES:
        raise DataError(
            f"{', '.join(source.files)} hold some {unpacked / 1e9:.1f} GB of text, more than the "
            f"{LARGEST_BYTES / 1e9:.1f} GB that fit into memory; make shards of them with `modularbase data prepare`"
        )


def _take(records: Sequence[Record], wanted: int, encoder: Encoder) -> Iterator[Document]:
    taken = 0
    while taken < wanted:  # a small source is repeated until its share is full
        for record in records:
            if taken >= wanted:
                return
            document = encoder.encode(record)
            yield document
            taken += len(document[0])


def join(documents: Iterable[Document], whole: Iterable[Document] = ()) -> Documents:
    """Lay documents end to end, after them those that must stay `whole`."""
    joining = Joining()
    for part, stays in ((documents, False), (whole, True)):
        for document in part:
            joining.add(document, whole=stays)
    return joining.documents()


class Joining:
    """Documents that are being laid end to end, in as few bytes as they need."""

    def __init__(self) -> None:
        # a Python list of small integers would take eight times the bytes
        self._ids, self._learn, self._starts, self._whole = array("I"), bytearray(), array("q", [0]), bytearray()

    def __len__(self) -> int:
        """Count the tokens so far."""
        return len(self._ids)

    def add(self, document: Document, *, whole: bool = False) -> None:
        """Lay one more document behind the others."""
        ids, learn = document
        self._ids.extend(ids)
        self._learn.extend(learn)
        self._starts.append(len(self._ids))
        self._whole.append(whole)

    def documents(self) -> Documents:
        """Return what was laid so far."""
        flat = np.frombuffer(self._ids, np.uint32) if self._ids else np.empty(0, np.uint32)
        small = not len(flat) or int(flat.max()) < 1 << 16
        return Documents(
            flat.astype(np.uint16) if small else flat.copy(),
            np.frombuffer(bytes(self._learn), np.bool_),
            np.array(self._starts, np.int64),
            np.frombuffer(bytes(self._whole), np.bool_),
        )
