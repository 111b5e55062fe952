"""A small conversation on disk, as a turn would have left it: pages of random numbers in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_packs import BASE, TOKENIZER

from modularbase_core.config import EngineConfig
from modularbase_core.context.bounds import BoundsIndex
from modularbase_core.context.codec import FORMS, PageShapes, PageValues, encode
from modularbase_core.context.cold import ColdStore
from modularbase_core.context.record import PageRecord
from modularbase_core.host.conversations import shapes_of
from modularbase_core.packs.catalog import Catalog
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.sdk.manifest import WEIGHTS_FILE
from modularbase_core.text.template import Message, render
from modularbase_core.text.tokenizer import Tokenizer

SHAPES = shapes_of(BASE)
SAID = [
    Message("user", "The password of the garden gate is heron-42. Remember it, please."),
    Message("assistant", "I shall remember it: heron-42."),
    Message("user", "Tell me of 鸟类 and of the river, at some length. " * 6),
    Message("assistant", "The river is slow, and the birds are many. " * 8),
    Message("user", "What was the password?"),
    Message("assistant", "It was heron-42."),
]


def tokenizer() -> Tokenizer:
    """Load the shipped tokenizer, which the tiny base has too."""
    return Tokenizer.load(TOKENIZER)


def token_ids(said: list[Message] = SAID) -> list[int]:
    """Return the ids of a conversation."""
    return render(said, tokenizer(), generate=False).token_ids


IDS = token_ids()


def page(index: int, ids: list[int], form: str, *, shapes: PageShapes = SHAPES) -> PageRecord:
    """Make a page of random numbers that are its own."""
    random = np.random.default_rng(index)
    values = PageValues(
        *(
            random.normal(size=shape).astype(np.float32)
            for shape in (shapes.hidden, shapes.understanding, shapes.fusion)
        )
    )
    tokens = np.full(PAGE_TOKENS, -1, np.int32)
    tokens[: len(ids)] = ids
    keys = values.understanding[None, :, 0].reshape(
        1, shapes.understanding_layers, shapes.kv_heads, shapes.head_size, PAGE_TOKENS
    )
    row = BoundsIndex(shapes.understanding_layers, shapes.kv_heads, shapes.head_size).row(keys)[0]
    whole = len(ids) == PAGE_TOKENS
    return PageRecord(
        index=index,
        form=form if whole else "exact",
        tokens=tokens,
        importance=0.125 * (index % 9),
        pinned=not whole,
        bounds=row if whole else b"",
        payload=encode(values, form if whole else "exact"),
    )


def pages_of(ids: list[int]) -> list[PageRecord]:
    """Cut ids into pages, one form after the other."""
    starts = range(0, len(ids), PAGE_TOKENS)
    return [page(i, ids[at : at + PAGE_TOKENS], FORMS[i % len(FORMS)]) for i, at in enumerate(starts)]


def described(catalog: Catalog) -> dict[str, str]:
    """Describe the catalog's base as sessions do."""
    manifest = catalog.find("tiny-base").manifest
    return {"id": manifest.id, "version": manifest.version, "digest": manifest.files[WEIGHTS_FILE]}


def keep(folder: Path, catalog: Catalog, ids: list[int], *, limit_bytes: int = 1 << 26, **state: object) -> None:
    """Write a session of `ids`, the last one pending as after an answer."""
    read = ids[:-1]
    known = {"tokens": len(read), "pending": ids[-1:], "recalls": [[320, [0, 2]]], "question": ids[:3]}
    known["recalled"] = [[0, "its words"], [32, "attention"]]
    with ColdStore.open(folder, limit_bytes=limit_bytes) as store:
        values = {"base": described(catalog), "state": {**known, **state}}
        store.put(pages_of(read), {key: json.dumps(value).encode() for key, value in values.items()})


def held(folder: Path) -> tuple[list[object], bytes | None, bytes | None]:
    """Return all that a session holds, to compare."""
    with ColdStore.open(folder, limit_bytes=1 << 26, create=False) as store:
        pages = [store.page(entry.index) for entry in store.entries()]
        plain = [
            (one.index, one.form, one.tokens.tolist(), one.importance, one.pinned, one.bounds, one.payload)
            for one in pages
            if one is not None
        ]
        return plain, store.meta("base"), store.meta("state")


def left(config: EngineConfig) -> list[str]:
    """Return what lies in the folder of sessions."""
    return sorted(one.name for one in config.sessions_dir.iterdir()) if config.sessions_dir.exists() else []


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Read the lines of an exported session."""
    return [json.loads(line) for line in file.read_bytes().splitlines()]
