"""Time to the first token of a conversation whose system prompt an earlier one had, with sharing and without.

The nano set, a system prompt of 512 tokens and a question of 32, by general chat after general chat (the same route),
by the Python pack after general chat (another), and with `prefix_tokens = 0`; interleaved, each round on prompts of
its own, medians. What was told is compared bit by bit.

    python tests/bench/prefix.py [--rounds 40] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from feeding import random_tokens

from modularbase_core.config import EngineConfig
from modularbase_core.engine.request import Request
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Parts
from modularbase_core.packs.catalog import discover
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Token

SYSTEM, QUESTION = 512, 32
CHAT, CODE = "general_chat", "python_code"
CASES = {"same route": (CHAT, CHAT), "another route": (CHAT, CODE)}


def main() -> None:
    """Run all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    models = {}
    for name, prefix_tokens in (("shared", 4096), ("not shared", 0)):
        parts = Parts(EngineConfig(threads=options.threads, prefix_tokens=prefix_tokens), discover(), None)
        models[name] = parts, parts.engine()
    seconds: dict[tuple[str, str], list[float]] = {(case, name): [] for case in CASES for name in models}
    for number in range(options.rounds + 1):
        for case, packs in CASES.items():
            system = random_tokens(SYSTEM, 2 * number + list(CASES).index(case) + 3)
            told = []
            for name, (parts, engine) in models.items():
                ask(parts, engine, [*system, *random_tokens(QUESTION, 1)], packs[0])
                taken, said = ask(parts, engine, [*system, *random_tokens(QUESTION, 2)], packs[1])
                told.append(said)
                if number:
                    seconds[case, name].append(taken)
            assert told[0] == told[1]
    show({key: 1e3 * statistics.median(taken) for key, taken in seconds.items()})


def ask(parts: Parts, engine: Engine, token_ids: list[int], pack: str) -> tuple[float, object]:
    """Return the seconds to the first token of a new conversation, and what was told."""
    sampling = SamplingConfig(temperature=0, max_tokens=4, logprobs=3)
    sequence = parts.sequence()
    request = Request(
        sequence=sequence, token_ids=token_ids, question=(SYSTEM, len(token_ids)), sampling=sampling, packs=(pack,)
    )
    with engine.slots.hold([pack]):
        begun, first, told = time.perf_counter(), 0.0, []
        for event in engine.stream(request):
            if isinstance(event, Token):
                first = first or time.perf_counter() - begun
                told.append((event.token_id, event.logprob, event.top))
            if isinstance(event, Finished) and engine.decoding.sharing.held_pages:
                assert event.shared_tokens in (0, SYSTEM)
    engine.release(sequence)
    return first, told


def show(medians: dict[tuple[str, str], float]) -> None:
    """Print the table and the JSON line."""
    print(f"{'first token after, ms':<24}{'shared':>10}{'not shared':>12}{'ratio':>8}")
    figures = {}
    for case in CASES:
        ours, plain = medians[case, "shared"], medians[case, "not shared"]
        print(f"{case:<24}{ours:>10.1f}{plain:>12.1f}{plain / ours:>8.2f}")
        figures[case] = {"shared_ms": ours, "not_shared_ms": plain, "ratio": plain / ours}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
