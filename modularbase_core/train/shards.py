"""Shards: documents as token ids on the disk, mapped into memory as they are read, with an index beside them.

Decides the files' layout and what is checked before they are trusted. They are made by `train.preparing` and learnt
from through `train.supply`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from modularbase_core.errors import DataError
from modularbase_core.sdk.files import file_sha256, write_atomically
from modularbase_core.sdk.jsonfile import parse_json
from modularbase_core.text.controls import Controls
from modularbase_core.train.encoding import Documents
from modularbase_core.train.readers.files import SHARDS_FILE

INDEX_FILE: Final = SHARDS_FILE
UNFINISHED_FILE: Final = "unfinished.json"
"""Stands in the index's place until all shards are written."""
FORMAT: Final = "modularbase-shards-1"
SPLITS: Final = ("train", "valid")
PARTS: Final = ("ids", "learn", "starts")
"""Arrays of a shard, a .npy file each: ids [n] uint16 or uint32, learn [n/8] uint8 (bits), starts [d+1] int64."""
_PROBE: Final = "The quick fox's 12345 jumps;\n\n\tdef f(x):\n  return x**2  # naïve\r\n敏捷的狐狸，跳过懒狗。🙂 ﬁ"
_HEADER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard of a split. sha256: of each of its files."""

    name: str
    split: str
    tokens: int
    documents: int
    sha256: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder of shards holds, and how it was made.

    tokenizer: what people call it; fingerprint: of it and the chat template. messages: documents that are
    conversations. duplicates: records left out, as the same stood there before. asked: digest of inputs and settings.
    sources: name, bytes and records of each file.
    """

    tokenizer: str
    fingerprint: str
    vocabulary_size: int
    response_only: bool
    messages: int
    duplicates: int
    asked: str
    sources: Sequence[Mapping[str, Any]]  # Any: plain JSON values
    shards: Sequence[Shard]

    def of(self, split: str) -> list[Shard]:
        """Return the shards of a split."""
        return [shard for shard in self.shards if shard.split == split]

    def tokens(self, split: str) -> int:
        """Count the tokens of a split."""
        return sum(shard.tokens for shard in self.of(split))


def fingerprint(tokenizer: Tokenizer, controls: Controls) -> str:
    """Return a digest of what decides the ids of a record: vocabulary, how a text is cut, and the chat template."""
    parts = [
        sorted(tokenizer.get_vocab(with_added_tokens=True).items()),
        tokenizer.encode(_PROBE, add_special_tokens=False).ids,
        {key: sorted(value) if isinstance(value, frozenset) else value for key, value in asdict(controls).items()},
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def holds_shards(folder: Path) -> bool:
    """Tell whether `folder` is one of shards; raises DataError when they are not finished."""
    if (folder / INDEX_FILE).is_file():
        return True
    if (folder / UNFINISHED_FILE).is_file():
        raise DataError(f"the shards in {folder} are not finished; run `modularbase data prepare` again, to its end")
    return False


def write_index(folder: Path, index: Index) -> None:
    """Write the index, whole or not at all."""
    value = {"format": FORMAT, **asdict(index)}
    write_atomically(folder / INDEX_FILE, [json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"])


def read_index(folder: Path) -> Index:
    """Read the index and check that its files are there, at their size; raises DataError."""
    try:
        value = parse_json((folder / INDEX_FILE).read_bytes())
        if value.pop("format") != FORMAT:
            raise ValueError("another format")
        value["shards"] = [Shard(**shard) for shard in value["shards"]]
        index = Index(**value)
        width = _id_type(index.vocabulary_size)().itemsize
        wanted = [
            (folder / f"{shard.name}.{part}.npy", size)
            for shard in index.shards
            for part, size in zip(
                PARTS, (shard.tokens * width, -(-shard.tokens // 8), 8 * (shard.documents + 1)), strict=True
            )
        ]
    except OSError as error:
        raise DataError(f"{folder / INDEX_FILE} cannot be read ({error.strerror}); prepare the shards first") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / INDEX_FILE} is no index of shards ({error}); prepare them again") from error
    for path, size in wanted:
        if not path.is_file() or not size < path.stat().st_size <= size + _HEADER_BYTES:
            raise DataError(f"{path} is missing or of another size than the index says; prepare the shards again")
    return index


def write_shard(folder: Path, name: str, split: str, documents: Documents, vocabulary_size: int) -> Shard:
    """Write one shard's files, each whole or not at all; raises OSError."""
    arrays = {
        "ids": documents.ids.astype(_id_type(vocabulary_size)),
        "learn": np.packbits(documents.learn),
        "starts": documents.starts,
    }
    digests = {}
    for part, array in arrays.items():
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        chunks = [header.getvalue(), array.tobytes()]
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        write_atomically(folder / f"{name}.{part}.npy", chunks)
        digests[part] = digest.hexdigest()
    return Shard(name=name, split=split, tokens=len(documents.ids), documents=len(documents), sha256=digests)


class MappedShard:
    """A shard whose arrays lie in files; what is asked for is read, and no more."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._folder, self.shard = folder, shard

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each document begins, and the last ends: [d+1] int64."""
        starts: NDArray[np.int64] = self._map("starts")
        return starts

    @cached_property
    def _ids(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        return self._map("ids")  # type: ignore[no-any-return]  # the header says which

    @cached_property
    def _bits(self) -> NDArray[np.uint8]:
        return self._map("learn")  # type: ignore[no-any-return]

    def read(self, first: int, end: int) -> Documents:
        """Copy documents [first, end) into memory; raises DataError when the files are not what was written."""
        self._checked  # noqa: B018  # once
        at, until = int(self.starts[first]), int(self.starts[end])
        learn = np.unpackbits(self._bits[at // 8 : -(-until // 8)])[at % 8 :][: until - at].astype(np.bool_)
        ids: NDArray[np.uint16] | NDArray[np.uint32] = self._ids[at:until].copy()
        return Documents(
            ids,
            learn,
            np.array(self.starts[first : end + 1]) - at,
            np.zeros(end - first, np.bool_),
        )

    @cached_property
    def _checked(self) -> None:
        """Compare the files' digests before anything is learnt from them."""
        for part, wanted in self.shard.sha256.items():
            path = self._folder / f"{self.shard.name}.{part}.npy"
            try:
                changed = file_sha256(path) != wanted
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}); prepare the shards again") from error
            if changed:
                raise DataError(f"{path} has changed since it was written; prepare the shards again")

    def _map(self, part: str) -> Any:  # an array of what the header says
        path = self._folder / f"{self.shard.name}.{part}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read ({error}); prepare the shards again") from error


def map_shards(folder: Path, index: Index, split: str) -> Iterator[MappedShard]:
    """Yield the shards of a split."""
    for shard in index.of(split):
        yield MappedShard(folder, shard)


def _id_type(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32
