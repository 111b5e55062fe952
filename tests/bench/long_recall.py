"""What was told long ago and is asked now: passkeys and several keys in whole books, by length and depth.

Passkey retrieval (Mohtashami and Jaggi, 2023) and its form with several keys (RULER, Hsieh et al., 2024), in forms that
training never uses (tests/bench/recall.py), hidden in DATA/long/books. The engine reads a text as `modularbase chat
--file` does it, then it is asked; answers are greedy, of general chat. Beside each length stands the same model with
the same things told within its window, where nothing has to come back. found: the page that tells came back, or was
still in sight.

    python tests/bench/long_recall.py DATA [--lengths 4096 16384 65536 100000] [--depths 5] [--each 1] [--plot FILE.svg]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recall import KINDS, NAMES

from modularbase_core.config import EngineConfig
from modularbase_core.host import Host, build
from modularbase_core.text.template import Message
from modularbase_core.train.corpus import read_records
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Token

WINDOW = 640
"""Tokens of a text that is in sight as a whole, question and template beside."""
GREEDY = SamplingConfig(temperature=0, max_tokens=14)
PIECE = 32 << 10


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and what came of it."""

    kind: str
    length: int
    depth: float
    right: bool
    found: bool


def main() -> None:
    """Measure and print a heat map, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536, 100_000])
    parser.add_argument("--depths", type=int, default=5)
    parser.add_argument("--each", type=int, default=1, help="texts of each length and, for a passkey, depth")
    parser.add_argument("--kinds", nargs="+", default=["passkey, en", "several, en"], choices=list(KINDS))
    parser.add_argument("--plot", type=Path, help="draw the heat maps (needs matplotlib)")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; run `pip install 'modularbase[bench]'`")
    depths = [(step + 0.5) / options.depths for step in range(options.depths)]
    records = list(read_records(options.data / "long/books.jsonl.xz"))
    books = {spoken: "\n".join(one.text or "" for one in records if one.language[:2] == spoken) for spoken in NAMES}
    done: list[Asked] = []
    with build(EngineConfig()) as host:
        for kind in options.kinds:
            for length in (WINDOW, *options.lengths):
                # within the window is what all else is held against, and takes no time
                each = options.each * (8 if length == WINDOW else 1)
                started = time.perf_counter()
                done += [one for number in range(each) for one in asked(host, kind, length, depths, books, number)]
                rows = [one for one in done if (one.kind, one.length) == (kind, length)]
                print(line(kind, length, depths, rows, time.perf_counter() - started), flush=True)
    if options.plot:
        from heat_map import draw

        draw(figures(done), options.plot)
    print(json.dumps(figures(done)))


def asked(
    host: Host, kind: str, length: int, depths: Sequence[float], books: dict[str, str], number: int
) -> Iterator[Asked]:
    """Hide, read and ask: a passkey in a text for each depth, several keys in one text."""
    random_ = random.Random(f"{kind} {length} {number}")
    if kind.startswith("passkey"):
        for depth in depths:
            yield from _ask(host, kind, length, [(depth, "", _key(random_))], books, random_)
    else:
        names = random_.sample(NAMES[kind[-2:]], len(depths))
        told = [(depth, name, _key(random_)) for depth, name in zip(depths, names, strict=True)]
        yield from _ask(host, kind, length, told, books, random_)


def _ask(
    host: Host,
    kind: str,
    length: int,
    told: Sequence[tuple[float, str, str]],
    books: dict[str, str],
    random_: random.Random,
) -> Iterator[Asked]:
    tell, ask = KINDS[kind]
    text = _hay(host, books[kind[-2:]], length, random_)
    for depth, name, key in sorted(told, reverse=True):
        at = text.find("\n", int(len(text) * depth)) + 1 or int(len(text) * depth)
        text = f"{text[:at]}{tell.format(name=name, key=key)}\n{text[at:]}"
    host.close()
    messages = host.read((text[first : first + PIECE] for first in range(0, len(text), PIECE)), "book")
    for depth, name, key in told:
        messages = [*messages, Message("user", ask.format(name=name, key=key))]
        events = list(host.chat(messages, GREEDY, packs=["general_chat"]))
        said = "".join(event.text for event in events if isinstance(event, (Token, Finished)))
        messages = [*messages, Message("assistant", said)]
        number = re.search(r"\d+", said)
        report = host.memory()
        found = length * (1 - depth) <= WINDOW or any(key[:2] in page.text for page in report.recalled)
        yield Asked(kind, length, depth, number is not None and number[0] == key, found)


def _hay(host: Host, book: str, length: int, random_: random.Random) -> str:
    """Cut `length` tokens from a book, or from as many copies of it as that takes, from a place that is drawn."""
    first = random_.randrange(len(book))
    book = book[first:] + book[:first]
    per_token = len(book[:60_000]) / len(host.tokenizer.encode(book[:60_000]))
    wanted = int(length * per_token)
    return (book * -(-wanted // len(book)))[:wanted]


def _key(random_: random.Random) -> str:
    return str(random_.randrange(10_000, 100_000))


def line(kind: str, length: int, depths: Sequence[float], rows: Sequence[Asked], seconds: float) -> str:
    """Lay out accuracies of one kind and length, a column for each depth."""
    cells = [[one.right for one in rows if one.depth == depth] for depth in depths]
    shares = "".join(f"{100 * sum(cell) / max(1, len(cell)):>5.0f}" for cell in cells)
    right, found = (100 * sum(marks) / len(rows) for marks in ([r.right for r in rows], [r.found for r in rows]))
    told = "within the window" if length == WINDOW else f"{length:,} tokens"
    return (
        f"{kind}, {told:<18} {shares}   right {right:>4.0f} %   found {found:>4.0f} %   n {len(rows)}   {seconds:.0f} s"
    )


def figures(done: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """Return accuracies by kind and length, and by depth."""
    out: dict[str, dict[str, float]] = {}
    for one in done:
        rows = [other for other in done if (other.kind, other.length) == (one.kind, one.length)]
        out.setdefault(f"{one.kind}, {one.length}", {})["right"] = sum(row.right for row in rows) / len(rows)
        out[f"{one.kind}, {one.length}"]["found"] = sum(row.found for row in rows) / len(rows)
        cell = [row.right for row in rows if row.depth == one.depth]
        out[f"{one.kind}, {one.length}"][f"depth {one.depth:.0%}"] = sum(cell) / len(cell)
    return out


if __name__ == "__main__":
    main()
