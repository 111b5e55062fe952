"""Every quality bar of the installed weights in one run: what was measured, its bar, and whether it is met.

- perplexity of each pack's own held-out records against general chat's, and of answers under their own prompts
  (quality.py); how varied answers are;
- who answers what (routing.py): held-out, natural, unseen and off-domain messages;
- what was told early and is asked late (recall.py), in torch, where the whole trained window is visible;
- packs that are not chosen change no bit (tests/engine/test_interference.py).

    python tests/bench/weights.py DATA [--quick]

--quick takes a part of the records, some minutes in all. Prints a table, then one JSON line; exits with 1 where a bar
is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import quality
import recall
import routing

from modularbase_core.config import EngineConfig
from modularbase_core.host import build
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import discover

OWN_DOMAIN = 0.7
"""The most that a pack's perplexity on its own domain may be of general chat's."""
OWN_PROMPT = 0.7
"""The most that an answer's perplexity under its own prompt may be of that under another's."""
GREEDY_DISTINCT_2, SAMPLED_DISTINCT_2, SAMPLED_REPEATED_4 = 0.3, 0.85, 0.02
ROUTED = {"held-out": 0.95, "natural": 0.85, "natural, unseen": 0.85, "off-domain": 0.95}
"""The least share of messages that reach their pack, of all."""
RECALLED = {"passkey, en": 0.95}
"""The least share of keys that are said, at each length; Chinese ones and one of several keys are measured alone."""

QUICK_RECORDS, QUICK_MESSAGES, QUICK_ANSWERS = 60, 200, 12
QUICK_DEPTHS = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its bar, None for none; least: the bar is the least that it may be, else the most."""

    name: str
    value: float
    bar: float | None = None
    least: bool = False

    @property
    def ok(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.least else self.value <= self.bar


def main() -> None:
    """Measure all, print each figure as it comes, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    begun, figures = time.perf_counter(), []
    print(f"{'figure':<54}{'value':>10}{'bar':>10}  ok")
    for part in (likelihoods, variety, routes, recalls, interference):
        for one in part(options.data, options.quick):
            figures.append(one)
            bar = "" if one.bar is None else f"{'>=' if one.least else '<='} {one.bar:g}"
            print(f"{one.name:<54}{one.value:>10.3f}{bar:>10}  {_mark(one)}".rstrip(), flush=True)
    missed = [one.name for one in figures if one.ok is False]
    barred = sum(one.ok is not None for one in figures)
    seconds = time.perf_counter() - begun
    print(f"{barred - len(missed)} of {barred} bars met in {seconds:.0f} s")
    packs = {one.id: one.manifest.version for one in discover().packs}
    told = [{**asdict(one), "ok": one.ok} for one in figures]
    print(json.dumps({"quick": options.quick, "packs": packs, "figures": told, "missed": missed, "seconds": seconds}))
    sys.exit(1 if missed else 0)


def likelihoods(data: Path, quick: bool) -> Iterator[Figure]:
    """Measure perplexities on held-out records."""
    found = quality.perplexities(data, QUICK_RECORDS if quick else 0)
    for name in quality.HELD_OUT:
        yield Figure(f"perplexity, {name}: its pack", found[f"{name}_with_pack"])
        yield Figure(f"perplexity, {name}: pack / general chat", found[f"{name}_ratio"], OWN_DOMAIN)
    for name in quality.LANGUAGES:
        yield Figure(f"perplexity, answers {name}", found[f"{name}_own_prompt"])
        yield Figure(f"perplexity, answers {name}: own / other prompt", found[f"{name}_ratio"], OWN_PROMPT)
    yield Figure("perplexity, base validation texts", found["base_validation"])


def variety(data: Path, quick: bool) -> Iterator[Figure]:
    """Measure how varied answers to held-out prompts are."""
    records = quality.short_prompts(data)
    with build(EngineConfig()) as host:
        found = quality.variety(host, records[:QUICK_ANSWERS] if quick else records)
    yield Figure("variety, greedy: distinct-2", found["greedy_distinct_2"], GREEDY_DISTINCT_2, least=True)
    yield Figure("variety, greedy: repeated 4-grams", found["greedy_repeated_4"])
    yield Figure("variety, sampled: distinct-2", found["sampled_distinct_2"], SAMPLED_DISTINCT_2, least=True)
    yield Figure("variety, sampled: repeated 4-grams", found["sampled_repeated_4"], SAMPLED_REPEATED_4)


def routes(data: Path, quick: bool) -> Iterator[Figure]:
    """Measure where messages go."""
    messages = Messages.open(EngineConfig(), discover())
    choose = routing.shipped(messages, routing.THRESHOLD)
    for name, rows in routing.test_sets(data).items():
        if quick and len(rows) > QUICK_MESSAGES:
            rows = random.Random(0).sample(rows, QUICK_MESSAGES)
        found = routing.measure(rows, choose)
        yield Figure(f"routing, {name}", found["accuracy"], ROUTED[name], least=True)
        for domain in ("general", *routing.DOMAINS):
            if name != "off-domain" and domain in found:
                yield Figure(f"routing, {name}: {domain}", found[domain])


def recalls(data: Path, quick: bool) -> Iterator[Figure]:
    """Measure what is found again of a text, by length and by depth."""
    hidden = recall.prompts(data, 1 if quick else 2, depths=QUICK_DEPTHS if quick else recall.DEPTHS)
    found = recall.accuracies(hidden, recall.found(hidden, recall.said_by_torch))
    for name, value in found.items():
        bar = None if "depth" in name else RECALLED.get(name.rpartition(",")[0])
        yield Figure(f"recall, {name}", value, bar, least=True)


def interference(data: Path, quick: bool) -> Iterator[Figure]:
    """Run the tests that hold packs apart."""
    test = Path(__file__).parents[1] / "engine/test_interference.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", str(test)], capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout[-2000:], file=sys.stderr)
    yield Figure("non-interference: tests that fail", float(done.returncode != 0), 0)


def _mark(one: Figure) -> str:
    return {True: "ok", False: "MISSED", None: ""}[one.ok]


if __name__ == "__main__":
    main()
