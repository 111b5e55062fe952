"""Labelled messages for a router and for packs' routing keys: of JSON lines, of pages, or of phrases with slots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from modularbase_core.errors import DataError
from modularbase_core.train.corpus import first_message, read_json_lines, read_records
from modularbase_core.train.phrases import read_phrases
from modularbase_core.train.readers.files import PAGES
from modularbase_core.train.recipe import Source
from modularbase_core.train.sections import questions_of


@dataclass(frozen=True, slots=True)
class Labelled:
    """A user's message, the domain that it belongs to, and what it is about there."""

    text: str
    domain: str = ""
    intent: str = ""
    language: str = ""


def read_messages(sources: Sequence[Source], data: Path, folder: Path, seed: int) -> list[Labelled]:
    """Read at most `source.tokens` messages of each source, in random order.

    A file lies in the data folder or else in the recipe's own; one that ends in .toml holds phrases (`phrases`). Of
    pages, also of all those in a folder, the headings are made into questions about the source's `domain`
    (`sections`). Raises DataError where nothing matches.
    """
    out = []
    for source in sources:
        rows = [row for name in source.files for row in _rows(name, data, folder, seed, source.domain)]
        if source.domains:
            rows = [row for row in rows if row.get("domain") in source.domains]
        if source.languages:
            rows = [row for row in rows if row.get("lang") in source.languages]
        if not rows:
            raise DataError(f"no message in {', '.join(source.files)} matches the recipe")
        for index in np.random.default_rng(seed).permutation(len(rows))[: source.tokens]:
            out.append(_labelled(rows[index], source))
    return out


# Any: whatever a line of JSON holds
def _rows(name: str, data: Path, folder: Path, seed: int, subject: str) -> list[dict[str, Any]]:
    path = folder / name if (folder / name).exists() and not (data / name).exists() else data / name
    if path.suffix == ".toml":
        return [*read_phrases(path, seed=seed)]
    if path.is_dir() or path.suffix in PAGES or has_magic(name):
        random_ = random.Random(seed)
        pages = (record.text for record in read_records(path) if record.text)
        return [{"text": said} for page in pages for said in questions_of(page, subject, random_)]
    return [*read_json_lines(path)]


def _labelled(row: dict[str, Any], source: Source) -> Labelled:
    domain = source.domain or str(row.get("domain", ""))
    intent = f"{row.get('domain', '')}/{row.get('intent', '')}" if source.domain else str(row.get("intent", ""))
    text = first_message(row, f"a record of {', '.join(source.files)}")
    return Labelled(text, domain, intent, str(row.get("lang", "")))
