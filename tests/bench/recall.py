"""What was told early and is asked late: passkeys and several keys, English and Chinese, by length and depth.

Passkey retrieval (Mohtashami and Jaggi, 2023) as the shared make_passkey.py writes it, and its form with several keys
(RULER, Hsieh et al., 2024), in forms that training never uses (train/recall.py). Texts are of DATA/long/books. Answers
are greedy, of base and general chat: in torch the whole window is visible; the compiled engine sees the sinks and 500
to 750 recent tokens of it.

    python tests/bench/recall.py DATA [--each 2] [--engine]
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from modularbase_core.config import EngineConfig
from modularbase_core.evaluate.generate import Asked, answers
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.host import build
from modularbase_core.packs.catalog import discover
from modularbase_core.text.template import END, Message
from modularbase_core.train.corpus import Record, read_records
from modularbase_core.train.encoding import Encoder, control_id
from modularbase_core.train.recall import NEEDLES
from modularbase_core.train.ship import load_shipped
from modularbase_core.turn.sample import SamplingConfig

LENGTHS = (256, 512, 900)
"""Tokens of a prompt, question included."""
DEPTHS = tuple((step + 0.5) / 10 for step in range(10))
KINDS = {
    "passkey, en": ("The pass key is {key}. Remember it. {key} is the pass key.", "What is the pass key?"),
    "passkey, zh": ("通行口令为{key}，务必牢记。通行口令就是{key}。", "通行口令为多少？"),
    "several, en": ("One of the special magic numbers for {name} is: {key}.", "Which magic number is for {name}?"),
    "several, zh": ("{name}号信箱的密码是{key}。", "{name}号信箱的密码是几？"),
}
KEYS = 4
"""Told where there are several; one of them is asked for."""
NAMES = {
    "en": ["Lisbon", "harbour", "copper", "violet", "Oslo", "lantern", "granite", "falcon", "Geneva", "marble"],
    "zh": ["东", "南", "西", "北", "甲", "乙", "丙", "丁", "天", "地"],
}
MOST_TOKENS = 14
"""Of an answer: a sentence around the key."""
BATCH_TOKENS = 4096
CHARACTERS = 8
"""Of a text, read for each token that is wanted: more than a token has."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """A prompt that hides a key and asks for it."""

    kind: str
    length: int
    depth: float
    prompt: str
    key: str


def main() -> None:
    """Measure and print accuracies, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--each", type=int, default=2, help="prompts of each kind, length and depth")
    parser.add_argument("--engine", action="store_true", help="ask the compiled engine too")
    options = parser.parse_args()
    hidden = prompts(options.data, options.each)
    asked = {"torch": said_by_torch, **({"engine": said_by_engine} if options.engine else {})}
    figures = {}
    for name, ask in asked.items():
        right = found(hidden, ask)
        figures[name] = accuracies(hidden, right)
        print(f"{name}:\n" + "\n".join(table(hidden, right)))
    print(json.dumps(figures))


def prompts(data: Path, each: int, lengths: Sequence[int] = LENGTHS, depths: Sequence[float] = DEPTHS) -> list[Hidden]:
    """Return `each` prompts of every kind, length and depth; the same ones every time."""
    trained = {tell for forms in NEEDLES.values() for tell, _, _ in forms}
    assert not trained & {tell.replace("{key}", "{value}") for tell, _ in KINDS.values()}
    encoder, tokens_of = _encoder()
    books: dict[str, list[str]] = {"en": [], "zh": []}
    for record in read_records(data / "long/books.jsonl.xz"):
        books[record.language[:2]].append(record.text or "")
    out = []
    for kind in KINDS:
        for length in lengths:
            for depth in depths:
                for number in range(each):
                    random_ = random.Random(f"{kind} {length} {depth} {number}")
                    out.append(_hidden(kind, length, depth, books[kind[-2:]], encoder, tokens_of, random_))
    return out


def found(hidden: Sequence[Hidden], ask: Callable[[Sequence[str]], list[str]]) -> list[bool]:
    """Tell of each prompt whether the first number that is said is the key."""
    said = ask([one.prompt for one in hidden])
    numbers = [re.search(r"\d+", text) for text in said]
    return [number is not None and number[0] == one.key for number, one in zip(numbers, hidden, strict=True)]


def accuracies(hidden: Sequence[Hidden], right: Sequence[bool]) -> dict[str, float]:
    """Return accuracies by kind and length, and by kind and depth."""
    all_, good = Counter[str](), Counter[str]()
    for one, mark in zip(hidden, right, strict=True):
        for name in (f"{one.kind}, {one.length}", f"{one.kind}, depth {one.depth:.0%}"):
            all_[name] += 1
            good[name] += mark
    return {name: good[name] / count for name, count in all_.items()}


def table(hidden: Sequence[Hidden], right: Sequence[bool]) -> list[str]:
    """Lay accuracies out: a line for each kind and length, a column for each depth."""
    depths = sorted({one.depth for one in hidden})
    lines = [f"{'depth, %':<20}" + "".join(f"{100 * depth:>5.0f}" for depth in depths) + "   all"]
    for kind, length in dict.fromkeys((one.kind, one.length) for one in hidden):
        marks = [
            (one.depth, mark)
            for one, mark in zip(hidden, right, strict=True)
            if (one.kind, one.length) == (kind, length)
        ]
        cells = [[mark for depth, mark in marks if depth == wanted] for wanted in depths]
        shares = [100 * sum(cell) / max(1, len(cell)) for cell in (*cells, [mark for _, mark in marks])]
        lines.append(
            f"{f'{kind}, {length}':<20}" + "".join(f"{share:>5.0f}" for share in shares[:-1]) + f"{shares[-1]:>6.0f}"
        )
    return lines


@torch.no_grad()
def said_by_torch(texts: Sequence[str]) -> list[str]:
    """Return greedy answers of base and general chat in torch, every token of the prompt visible."""
    catalog = discover()
    base, pack = (load_shipped(catalog.find(name).pack.directory) for name in ("nano-base", "general_chat"))
    assert isinstance(base, Base)
    assert isinstance(pack, Pack)
    tokenizer = Tokenizer.from_file(str(catalog.find("nano-base").pack.tokenizer))
    encoder, end = Encoder(tokenizer, response_only=True), control_id(tokenizer, END)
    encoded = [encoder.encode(_record(text, ""))[0][:-1] for text in texts]  # up to where the answer begins
    said: list[list[int]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda number: len(encoded[number]))
    while order:
        batch = order[: max(1, BATCH_TOKENS // (len(encoded[order[0]]) + MOST_TOKENS))]
        order = order[len(batch) :]
        for _ in range(MOST_TOKENS):
            running = [number for number in batch if not said[number] or said[number][-1] != end]
            if not running:
                break
            rows = [[*encoded[number], *said[number]] for number in running]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            last = torch.tensor([line * longest + len(row) - 1 for line, row in enumerate(rows)])
            mixed = pack(base.understand(ids.flatten(), Windows(len(rows))), Windows(len(rows)))
            for number, token in zip(
                running, base.fuse(mixed, Windows(len(rows)), last).argmax(-1).tolist(), strict=True
            ):
                said[number].append(token)
    return [tokenizer.decode(ids) for ids in said]


def said_by_engine(texts: Sequence[str]) -> list[str]:
    """Return greedy answers of the compiled engine, of general chat."""
    sampling = SamplingConfig(temperature=0, max_tokens=MOST_TOKENS)
    with build(EngineConfig(hot_tokens=16384)) as host:
        asked = [Asked((Message("user", text),), ("general_chat",), sampling) for text in texts]
        return [answer.text for answer in answers(host, asked)]


def _hidden(
    kind: str,
    length: int,
    depth: float,
    books: Sequence[str],
    encoder: Encoder,
    tokens_of: Callable[[str], int],
    random_: random.Random,
) -> Hidden:
    tell, ask = KINDS[kind]
    count = KEYS if kind.startswith("several") else 1
    names = random_.sample(NAMES[kind[-2:]], count)
    keys = [str(random_.randrange(10000, 100000)) for _ in names]
    told = [tell.format(name=name, key=key) for name, key in zip(names, keys, strict=True)]
    question = f"\n\n{ask.format(name=names[0])}"
    book, tokens = random_.choice(books), length - sum(map(tokens_of, told)) - tokens_of(question) - 4
    start = random_.randrange(len(book) - CHARACTERS * length)
    filler = encoder.snippet(book[start : start + CHARACTERS * length], tokens, random_)
    # the one that is asked for lies at `depth`, the others anywhere; from the end, so that no place moves
    places = [depth, *(random_.random() for _ in names[1:])]
    text = filler
    for place, one in sorted(zip(places, told, strict=True), reverse=True):
        at = _border(filler, place)
        text = f"{text[:at]} {one} {text[at:]}"
    return Hidden(kind, length, depth, f"{text}{question}", keys[0])


def _border(text: str, depth: float) -> int:
    """Return where a sentence ends next after `depth` of a text."""
    end = re.compile(r"[.!?。！？”\"]\s|[。！？]|\n").search(text, int(len(text) * depth))
    return end.end() if end else int(len(text) * depth)


def _encoder() -> tuple[Encoder, Callable[[str], int]]:
    tokenizer = Tokenizer.from_file(str(discover().find("nano-base").pack.tokenizer))
    encoder = Encoder(tokenizer, response_only=True)
    return encoder, lambda text: len(tokenizer.encode(text).ids)


def _record(prompt: str, response: str) -> Record:
    said = (("user", prompt), ("assistant", response))
    return Record(None, tuple({"role": role, "content": text} for role, text in said), "", "")


if __name__ == "__main__":
    main()
