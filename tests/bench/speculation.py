"""Tokens a second with drafts looked up in the conversation and without, on the shipped nano set, and what rows cost.

Answers that quote their prompt (asked to repeat, or to go on with, a code or text that is in it) and answers to
ordinary questions, greedy and sampled; one conversation each. A greedy answer of nano repeats itself, which drafts find
too, and a sampled one seldom quotes; so some are dictated, token by token as if they had been sampled: code with the
changes that are asked for, and prose of ours. Two models answer the same in turn, round after round; medians of the
ratios. What is told is compared. Seconds are the processor's, on one thread: what else the machine does does not count.
Then a call of 1 to 16 rows, of nano and with --speed of the packs of Qwen2-0.5B's shape that speed.py made in FOLDER.

    python tests/bench/speculation.py [--rounds 5] [--draft-tokens 15] [--speed FOLDER] [--precision int8] [--cache DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from unittest import mock

os.environ["TVM_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))
from feeding import random_tokens
from tiny_packs import catalog_of

from modularbase_core.config import EngineConfig, default_cache_dir
from modularbase_core.host import Host, Parts, build
from modularbase_core.packs.catalog import Catalog, discover
from modularbase_core.text.template import Message
from modularbase_core.turn.route import force
from modularbase_core.turn.sample import Sampled, Sampler, SamplingConfig
from modularbase_core.turn.stages import Finished, Token

ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
TOKENS, CONTEXT, CALLS = 160, 300, 40

CODE = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def __len__(self):
        return len(self.items)
"""
TEXT = (
    "The lighthouse stood at the end of the pier. Every evening the keeper climbed the ninety steps, lit the lamp and "
    "wrote the weather into a book. When the fog came in from the sea he rang the bell once a minute until morning."
)
ASKED = {
    "quoting": [
        ("python_code", f"Repeat this code:\n\n{CODE}"),
        ("python_code", f"Write this class again, with a method peek:\n\n{CODE}"),
        ("general_chat", f"Repeat this text word by word: {TEXT}"),
        ("general_chat", f"{TEXT}\n\nCopy the text above, then go on with it."),
    ],
    "ordinary": [
        ("python_code", "What is a list comprehension in Python? Show an example."),
        ("python_code", "Write a function that sorts a list of numbers."),
        ("general_chat", "How do I make a good cup of tea?"),
        ("general_chat", "Tell me about the sea and what lives in it."),
        ("legal", "What makes a contract valid?"),
        ("medical", "What are the causes of a fever?"),
        ("creative", "Write a short story about a fox."),
        ("reasoning", "Anna has 3 apples and buys 5 more. She gives 2 away. How many are left? Explain every step."),
    ],
}
CHANGED = CODE.replace("items", "values").replace("IndexError", "LookupError")
PROSE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")[:1500]
DICTATED = {
    "code with changes": ("python_code", f"Write values for items, raise LookupError:\n\n{CODE}", CHANGED),
    "prose": ("general_chat", "How are conversations of any length kept?", PROSE),
}
SAMPLED = {
    "greedy": SamplingConfig(temperature=0, max_tokens=TOKENS),
    "sampled": SamplingConfig(temperature=0.7, top_p=0.95, repetition_penalty=1.1, seed=1, max_tokens=TOKENS),
}
Figures = dict[str, float]


def main() -> None:
    """Run all and print the tables, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draft-tokens", type=int, default=EngineConfig().draft_tokens)
    parser.add_argument("--speed", type=Path, help="the folder of speed.py")
    parser.add_argument("--precision", default="int8", help="of the packs that speed.py made")
    parser.add_argument("--cache", type=Path, default=default_cache_dir())
    options = parser.parse_args()
    plain = EngineConfig(cache_dir=options.cache, threads=1, prefetch=False, draft_tokens=0)
    drafts = EngineConfig(cache_dir=options.cache, threads=1, prefetch=False, draft_tokens=options.draft_tokens)
    figures: dict[str, Figures] = {}
    with build(plain) as without, build(drafts) as with_drafts:
        for kind, how in ((kind, how) for kind in ASKED for how in SAMPLED):
            figures[f"{kind}, {how}"] = compare(without, with_drafts, ASKED[kind], SAMPLED[how], options.rounds)
        for kind, (pack, question, text) in DICTATED.items():
            said = iter(cycle([*without.tokenizer.encode(text), without.tokenizer.control("<|end|>")]))
            with mock.patch.object(Sampler, "sample", lambda _self, _logits, said=said: Sampled(next(said))):
                how = SamplingConfig(temperature=0, max_tokens=2048)
                figures[f"{kind}, dictated"] = compare(without, with_drafts, [(pack, question)], how, options.rounds)
    rows = {"nano": rows_of(Parts(plain, discover(), None), options.rounds)}
    if options.speed:
        rows[f"Qwen2-0.5B's shape, {options.precision}"] = rows_of(speed_parts(options), options.rounds)
    show(figures, rows)


def compare(
    without: Host, with_drafts: Host, asked: list[tuple[str, str]], sampling: SamplingConfig, rounds: int
) -> Figures:
    """Answer all questions with both in turn; tokens a second, their ratio, the share of drafts that came."""
    ratios, seconds = [], {without: 0.0, with_drafts: 0.0}
    for number in range(rounds + 1):
        taken, told, tokens, drafted, accepted = {without: 0.0, with_drafts: 0.0}, [], 0, 0, 0
        for pack, question in asked:
            for host in taken if number % 2 else reversed(taken):
                one, said, end = answer(host, pack, question, sampling)
                taken[host] += one
                told.append(said)
                drafted, accepted = drafted + end.drafted_tokens, accepted + end.accepted_tokens
            assert told[-1] == told[-2], "drafts changed an answer"
            tokens += len(told[-1]) - 1
        if number:  # the first round warms up
            ratios.append(taken[without] / taken[with_drafts])
            seconds = {host: min(seconds[host] or one, one) for host, one in taken.items()}
    return {
        "without": tokens / seconds[without],
        "with drafts": tokens / seconds[with_drafts],
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "drafted a token": drafted / tokens,
        "accepted": accepted / max(1, drafted),
    }


def answer(host: Host, pack: str, question: str, sampling: SamplingConfig) -> tuple[float, list[int], Finished]:
    """Return the seconds from the first token to the end, the tokens, and the end of a new conversation."""
    host.close()
    begun, said = 0.0, []
    for event in host.chat([Message("user", question)], sampling, packs=[pack]):
        if isinstance(event, Token):
            begun = begun or time.process_time()
            said.append(event.token_id)
    assert isinstance(event, Finished)
    return time.process_time() - begun, said, event


def speed_parts(options: argparse.Namespace) -> Parts:
    """Open the packs that speed.py made."""
    found = {path.parent.name: path.parent for path in (options.speed / "project").rglob("manifest.json")}
    catalog: Catalog = catalog_of(found)
    how = {"base_precision": options.precision, "pack_precision": options.precision}
    config = EngineConfig(cache_dir=options.speed / "cache", threads=1, memory_bytes=16 << 30, **how)
    return Parts(config, catalog, None)


def rows_of(parts: Parts, rounds: int) -> Figures:
    """Return the milliseconds of a call by its rows, after some context."""
    engine, sequence = parts.engine(), parts.sequence()
    pack = parts.lineup.general_chat.id
    sequence.route = force([pack])
    taken: dict[int, list[float]] = {count: [] for count in ROWS}
    with engine.slots.hold([pack]) as slots:
        placed = {pack: slots[0].content}
        engine.understanding.ingest(sequence, random_tokens(CONTEXT))
        engine.decoding.prefill(sequence, placed)
        for count in shuffled(CALLS * rounds):
            begun = time.process_time()
            engine.decoding.look_ahead([sequence], [list(range(20, 20 + count))], placed)
            taken[count].append(1e3 * (time.process_time() - begun))
    return {str(count): statistics.median(seconds[2:]) for count, seconds in taken.items()}


def shuffled(calls: int) -> Iterator[int]:
    """Yield numbers of rows, each as often, every other time in the other order."""
    for number in range(calls // len(ROWS) + 3):
        yield from ROWS if number % 2 else ROWS[::-1]


def show(figures: dict[str, Figures], rows: dict[str, Figures]) -> None:
    """Print the tables and the JSON line."""
    names = list(next(iter(figures.values())))
    print(f"{'answers, tokens/s':<28}" + "".join(f"{name:>17}" for name in names))
    for name, row in figures.items():
        print(f"{name:<28}" + "".join(f"{row[key]:>17.2f}" for key in names))
    print(f"\n{'call, ms':<30}" + "".join(f"{count:>9}" for count in ROWS) + "   rows")
    for name, row in rows.items():
        print(f"{name:<30}" + "".join(f"{row[str(count)]:>9.2f}" for count in ROWS))
        print(f"{'  x one row':<30}" + "".join(f"{row[str(count)] / row['1']:>9.2f}" for count in ROWS))
    print(json.dumps({"answers": figures, "rows_ms": rows}))


if __name__ == "__main__":
    main()
