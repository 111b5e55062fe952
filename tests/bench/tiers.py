"""What the tiers are worth: perplexity with a small hot window, attention recovered, and what fewer bits cost.

- A hot window of a quarter of the trained length on texts of the trained length, where full attention is valid: full;
  the window alone, with what recalled pages would take left empty, and with it filled with recent tokens; the tiers.
  The weights are the same and so are the programs: only the visible lists differ.
- Beyond the trained length: the tiers against exact top-k, which scores cold pages by all their keys instead of bounds.
- Of the attention that the understanding layers of a block would pay to cold pages, what the recalled ones get, against
  the best set of the same size, which only the block itself knows, and against the set that exact top-k finds.
- Perplexity of 256 tokens after 512 that were kept in a form and read back, against float16.

Texts are of DATA/long/books; base and general chat, decoded token by token by the engine.

    python tests/bench/tiers.py DATA [--texts 10] [--beyond 3] [--beyond-tokens 6144]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modularbase_core.config import EngineConfig
from modularbase_core.context.bounds import BoundsIndex
from modularbase_core.context.codec import PageValues, decode, encode
from modularbase_core.context.page import PageTable
from modularbase_core.context.tiers import Tiers
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Parts
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import PAGE_TOKENS, Window
from modularbase_core.train.corpus import read_records
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence as Conversation

TRAINED = 1024
FULL = Window(trained_tokens=TRAINED, block_tokens=256, recent_tokens=752, sink_tokens=16)
QUARTER = Window(trained_tokens=256, block_tokens=64, recent_tokens=112, sink_tokens=16)
FILLED = replace(QUARTER, recent_tokens=112 + 64)
SCORED_FROM = 256
CHAT = "general_chat"


def main() -> None:
    """Measure and print the figures, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--beyond", type=int, default=3)
    parser.add_argument("--beyond-tokens", type=int, default=6144)
    options = parser.parse_args()
    parts = Parts(EngineConfig(), discover(), None)
    books = [one.text or "" for one in read_records(options.data / "long/books.jsonl.xz")]
    texts = [_text(parts, books, TRAINED, seed) for seed in range(options.texts)]
    out = quarter(parts, texts)
    out |= beyond(parts, [_text(parts, books, options.beyond_tokens, 100 + seed) for seed in range(options.beyond)])
    out |= forms(parts, texts)
    for name, value in out.items():
        print(f"{name:<62} {value:10.4f}")
    print(json.dumps(out))


def quarter(parts: Parts, texts: Sequence[list[int]]) -> dict[str, float]:
    """Return perplexities with a quarter of the window, and the share of the gap that the tiers close."""
    lists = {
        "full attention": (FULL, False),
        "a quarter: the window alone": (QUARTER, False),
        "a quarter: the window alone, as many tokens seen": (FILLED, False),
        "a quarter: with tiers": (QUARTER, True),
    }
    found = {name: _perplexity(parts, texts, window, tiers=tiers) for name, (window, tiers) in lists.items()}
    full, alone, filled, tiers = found.values()
    return found | {
        "gap of the window alone, %": 100 * (alone / full - 1),
        "of it the tiers close, %": 100 * (alone - tiers) / (alone - full),
        "of the gap of as many tokens seen, %": 100 * (filled - tiers) / (filled - full),
    }


def beyond(parts: Parts, texts: Sequence[list[int]]) -> dict[str, float]:
    """Return perplexities of long texts, and the attention that recalled pages get."""
    window = parts.base.window
    out = {
        "beyond: the window alone": _perplexity(parts, texts, window, tiers=False, first=768),
        "beyond: with tiers": _perplexity(parts, texts, window, tiers=True, first=768),
        "beyond: exact top-k": _perplexity(parts, texts, window, tiers=True, first=768, prepare=exact),
    }
    shares = [_recovered(parts, text, window) for text in texts]
    out["attention of the best set that recalled pages get, %"] = 100 * float(np.mean([one[0] for one in shares]))
    out["attention of the best set that exact top-k's get, %"] = 100 * float(np.mean([one[1] for one in shares]))
    out["attention of exact top-k's that recalled pages get, %"] = 100 * float(np.mean([one[2] for one in shares]))
    return out


def forms(parts: Parts, texts: Sequence[list[int]]) -> dict[str, float]:
    """Return perplexities after pages went through a form, against float16, in per cent."""
    lost = dict.fromkeys(("float16", "int8", "int4", "summary"), 0.0)
    count = 0
    for text in texts:
        for form in lost:
            with _engine(parts, FULL) as (engine, held):
                sequence = Conversation(PageTable(FULL))
                _feed(engine, sequence, text[:512], held)
                hot = engine.decoding._hot
                for page in sequence.table.page_ids:
                    hot.write(page, _through(hot.read([page]), form, parts))
                lost[form] += _score(engine, sequence, text[512:769], held, 0)[0]
                engine.release(sequence)
        count += 256
    perplexity = {form: float(np.exp(value / count)) for form, value in lost.items()}
    return {"after float16: perplexity": perplexity["float16"]} | {
        f"after {form}: above it, %": 100 * (value / perplexity["float16"] - 1)
        for form, value in perplexity.items()
        if form != "float16"
    }


def exact(tiers: Tiers) -> None:
    """Have a conversation's cold pages scored by all their keys."""
    shapes = tiers.settings.shapes
    tiers._bounds = Exact(shapes.understanding_layers, shapes.kv_heads, shapes.head_size)


class Exact(BoundsIndex):
    """Finds pages by the attention that their keys get, as `BoundsIndex` does by bounds of it."""

    def __init__(self, layers: int, kv_heads: int, head_size: int) -> None:
        super().__init__(layers, kv_heads, head_size)
        self.keys: dict[int, NDArray[np.float32]] = {}
        self._made: list[NDArray[np.float32]] = []

    def row(self, keys: NDArray[np.float32]) -> list[bytes]:
        """Make rows as bounds do, and keep the keys for `add_many`, which follows in the same order."""
        self._made += list(keys)
        return super().row(keys)

    def add_many(self, pages: Sequence[int], rows: Sequence[bytes]) -> None:
        """Hold pages with their keys."""
        super().add_many(pages, rows)
        self.keys.update(zip(pages, self._made[: len(pages)], strict=True))
        del self._made[: len(pages)]

    def mass(self, queries: NDArray[np.float32], pages: Sequence[int]) -> NDArray[np.float32]:
        """Return the attention [len(pages)] that pages get, of what these pages get in all."""
        keys = np.stack([self.keys[page] for page in pages])  # [N, L, K, D, 16]
        rows, layers, _, size = queries.shape
        grouped = queries.reshape(rows, layers, keys.shape[2], -1, size)
        score = np.einsum("rlkgd,nlkdt->rlkgnt", grouped, keys, optimize=True) * size**-0.5
        score = np.exp(score - score.max((4, 5), keepdims=True))
        share: NDArray[np.float32] = (score / score.sum((4, 5), keepdims=True)).sum((0, 1, 2, 3, 5))
        return share

    def search(
        self, queries: NDArray[np.float32], *, before: int, count: int, without: Collection[int] = ()
    ) -> NDArray[np.int64]:
        """Return the pages that get most."""
        pages = [page for page in self.keys if page < before and page not in without]
        if not pages:
            return np.zeros(0, np.int64)
        best = np.argsort(-self.mass(queries, pages), kind="stable")[:count]
        return np.array(pages, np.int64)[best]


def _recovered(parts: Parts, text: list[int], window: Window) -> tuple[float, float, float]:
    """Return, over the blocks of a text, what the recalled pages and those of exact top-k get of the best set's."""
    ours, top, best = 0.0, 0.0, 0.0
    with _engine(parts, window) as (engine, held):
        sequence = parts.sequence()
        assert sequence.tiers is not None
        exact(sequence.tiers)
        index = sequence.tiers._bounds
        assert isinstance(index, Exact)
        remembering, block = engine.decoding.remembering, window.block_tokens
        room = sequence.tiers.settings.recall_pages
        chosen: list[list[int]] = []
        for start in range(0, len(text) - block + 1, block):
            before = sequence.table.first_recent(start) // PAGE_TOKENS
            pages = [page for page in index.keys if page < before]
            _feed(engine, sequence, text[start : start + block - 1], held)
            if len(pages) > room:
                queries = remembering.queries(sequence, start, start + block - 1)
                mass = dict(zip(pages, index.mass(queries, pages), strict=True))
                ours += sum(mass[page] for page in chosen[0])
                top += sum(mass[page] for page in chosen[1])
                best += sum(sorted(mass.values())[-room:])
            _feed(engine, sequence, text[start + block - 1 : start + block], held)
            asked = remembering.queries(sequence, start + block - 32, start + block)[::-2]
            before = sequence.table.first_recent(start + block) // PAGE_TOKENS
            chosen = [
                BoundsIndex.search(index, asked, before=before, count=room).tolist(),
                index.search(asked, before=before, count=room).tolist(),
            ]
        engine.release(sequence)
    return ours / best, top / best, ours / top


def _perplexity(
    parts: Parts,
    texts: Sequence[list[int]],
    window: Window,
    *,
    tiers: bool,
    first: int = SCORED_FROM,
    prepare: Callable[[Tiers], None] | None = None,
) -> float:
    total, count = 0.0, 0
    with _engine(parts, window) as (engine, held):
        for text in texts:
            sequence = parts.sequence() if tiers else Conversation(PageTable(window))
            if prepare is not None and sequence.tiers is not None:
                prepare(sequence.tiers)
            lost, scored = _score(engine, sequence, text, held, first)
            engine.release(sequence)
            total, count = total + lost, count + scored
    return float(np.exp(total / count))


@contextmanager
def _engine(parts: Parts, window: Window) -> Iterator[tuple[Engine, dict[str, PlacedPack]]]:
    """Run the same programs with other visible lists."""
    trained, parts.base = parts.base, replace(parts.base, window=window)
    try:
        engine = parts.engine()
        with engine.slots.hold([CHAT]) as slots:
            (pack,) = (slot.content for slot in slots)
            pack._window = window
            yield engine, {CHAT: pack}
        engine.close()
    finally:
        parts.base = trained


def _feed(engine: Engine, sequence: Conversation, token_ids: list[int], held: dict[str, PlacedPack]) -> None:
    sequence.route = force([CHAT])
    while token_ids:
        count = sequence.stretch(len(token_ids))
        engine.understanding.ingest(sequence, token_ids[:count])
        engine.decoding.prefill(sequence, held)
        token_ids = token_ids[count:]


def _score(
    engine: Engine, sequence: Conversation, text: list[int], held: dict[str, PlacedPack], first: int
) -> tuple[float, int]:
    """Decode a text; return the loss of its tokens from the one after `first` on, summed, and their number."""
    sequence.route = force([CHAT])
    total, count = 0.0, 0
    for place, token_id in enumerate(text[:-1]):
        logits = engine.decoding.step([sequence], [token_id], held)[0].astype(np.float64)
        if place >= first:
            largest = logits.max()
            total += largest + np.log(np.exp(logits - largest).sum()) - logits[text[place + 1]]
            count += 1
    return float(total), count


def _through(values: PageValues, form: str, parts: Parts) -> PageValues:
    one = PageValues(values.hidden[0], values.understanding[0], values.fusion[0])
    if form == "float16":
        return PageValues(*(part.astype(np.float16) for part in (one.hidden, one.understanding, one.fusion)))
    return decode(encode(one, form), parts.page_shapes, form)


def _text(parts: Parts, books: Sequence[str], count: int, seed: int) -> list[int]:
    random_ = random.Random(seed)
    book = random_.choice(books)
    at = random_.randrange(len(book) - 8 * count)
    return list(parts.tokenizer.encode(book[at : at + 8 * count])[8 : 8 + count])


if __name__ == "__main__":
    main()
