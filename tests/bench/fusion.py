"""Several packs in one turn: what a call costs, what one launch for two packs could save, what each fusion gives.

- calls at decode, interleaved in one run: a pack at one row and at two, two packs one after the other, and a pack as
  deep but so narrow that next to nothing is computed: what remains of it is overhead, and the most that one launch
  for both packs could save; then whole decode steps with one pack, and with two under each fusion;
- with DATA, in torch: perplexity of held-out answers under each fusion and limit of contradiction, with either pack
  leading, and how far the two packs' outputs agree (cosine) where their best next tokens are the same, or not.

    python tests/bench/fusion.py [DATA] [--rounds 40] [--records 60] [--threads 0]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from feeding import new_sequence, random_tokens

from modularbase_core.config import EngineConfig
from modularbase_core.context.hot import make_pages
from modularbase_core.device.artefact import Build, ensure_artefacts
from modularbase_core.device.executable import Executable, Tensor
from modularbase_core.device.layouts import PlacedWeights
from modularbase_core.device.target import physical_cores
from modularbase_core.graph.places import Windows
from modularbase_core.host import Parts, target_of
from modularbase_core.host.memory import pages_of
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import Blocks, PackArchitecture
from modularbase_core.train.corpus import read_records
from modularbase_core.train.encoding import Encoder
from modularbase_core.train.language import Whole
from modularbase_core.train.perplexity import Likelihood, Scorer
from modularbase_core.train.ship import load_shipped
from modularbase_core.turn.fusions import BUILTIN, Shares
from modularbase_core.turn.route import force

PACKS = ("python_code", "general_chat")
NARROW = Blocks(hidden_size=64, heads=2, kv_heads=1, head_size=32, ffn_size=64)
PROMPT = 800
"""Tokens before the first step: beyond the window's recent ones, so that steps cost the same from then on."""
CALLS = 50
"""Of each kind in a round."""
FUSIONS = {f"{one.name}, {limit:g}": Shares(one, limit) for one in BUILTIN for limit in (-1, 0.3)}
LIMITS = (-1.0, 0.2, 0.3, 0.4, 0.5, 0.6)
HELD_OUT = {"python": ("python/mbpp_test", "python/test"), "chat": ("chat/test", "chat/more_test")}
LEADING = 0.7
LONGEST = 512
"""Tokens of a record that are read."""


def main() -> None:
    """Measure and print the tables, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--records", type=int, default=60, help="at most so many of each kind")
    parser.add_argument("--threads", type=int, default=0, help="of the calls; 0 is one for each physical core")
    options = parser.parse_args()
    parts = Parts(EngineConfig(threads=options.threads), discover(), None)
    figures: dict[str, float] = {"threads": options.threads or physical_cores(), **calls(parts, options.rounds)}
    if options.data is not None:
        for name, files in HELD_OUT.items():
            figures |= blends(name, [options.data / f"{file}.jsonl.xz" for file in files], options.records)
    for name, value in figures.items():
        print(f"{name:<48}{value:>10.3f}")
    print(json.dumps(figures))


def calls(parts: Parts, rounds: int) -> dict[str, float]:
    """Time calls and steps in turn: medians in microseconds, and what they make of each other, round by round."""
    engine = parts.engine()
    sequences = [new_sequence(parts) for _ in range(2)]
    with engine.slots.hold(PACKS) as slots:
        placed = {slot.pack_id: slot.content for slot in slots}
        for one in sequences:
            one.route = force(PACKS)
            engine.understanding.ingest(one, random_tokens(PROMPT))
            engine.decoding.prefill(one, placed)
        buffers = engine.decoding._buffers
        hidden = [engine.understanding.recall(sequences[0], PROMPT - rows, rows) for rows in (1, 2)]
        one_row, two_rows = (
            buffers.rows(f"bench{count}", [placed[PACKS[0]].plan(one, one.fused, 1) for one in sequences[:count]])
            for count in (1, 2)
        )
        first, second = ((placed[pack]._run, placed[pack].pages) for pack in PACKS)
        narrow = narrow_pack(parts)
        mix, compare = engine.decoding._fusion._mix, engine.decoding._fusion._compare
        weight = parts.device.put(np.ones(1, np.float32))
        kinds: dict[str, Callable[[], object]] = {
            "one pack, one row": lambda: first[0](hidden[0], first[1], *one_row.inputs),
            "one pack, two rows": lambda: first[0](hidden[1], first[1], *two_rows.inputs),
            "two packs, one row each": lambda: [
                run(hidden[0], pages, *one_row.inputs) for run, pages in (first, second)
            ],
            "narrow pack, one row": lambda: narrow[0](hidden[0], narrow[1], *one_row.inputs),
            "mix": lambda: mix(hidden[0], hidden[0], weight),
            "compare": lambda: compare(hidden[0], hidden[0]),
        }

        def step(shares: Shares | None) -> Callable[[], object]:
            def run() -> None:
                engine.decoding._fusion.shares = shares or engine.decoding._fusion.shares
                engine.decoding.step(sequences[:1], [5], placed)

            return run

        kinds |= {f"step, two packs, {name}": step(shares) for name, shares in FUSIONS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        alone: list[float] = []
        for number in range(rounds + 1):
            taken = {name: clock(work) for name, work in kinds.items()}
            sequences[0].route = force(PACKS[:1])
            placed[PACKS[1]].forget(sequences[0])
            single = clock(step(None))
            sequences[0].route = force(PACKS)
            placed[PACKS[1]].join(sequences[0], sequences[0].fused, engine.understanding, buffers, 256)
            if number:  # the first round warms up
                alone.append(single)
                for name, value in taken.items():
                    seconds[name].append(value)
    both = seconds["two packs, one row each"]

    def share(some: list[float], whole: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(some, whole, strict=True))

    out = {f"{name} (us)": 1e6 * statistics.median(values) for name, values in seconds.items()}
    out["step, one pack (us)"] = 1e6 * statistics.median(alone)
    out["two packs / one"] = share(both, seconds["one pack, one row"])
    out["two rows / one"] = share(seconds["one pack, two rows"], seconds["one pack, one row"])
    out["most that one launch saves, of the calls"] = share(seconds["narrow pack, one row"], both)
    two = seconds[f"step, two packs, {BUILTIN[0].name}, -1"]
    out["most that one launch saves, of a step"] = share(seconds["narrow pack, one row"], two)
    for name in FUSIONS:
        out[f"step, two packs, {name} / mean, -1"] = share(seconds[f"step, two packs, {name}"], two)
    return out


def narrow_pack(parts: Parts) -> tuple[Callable[..., Tensor], Tensor]:
    """Compile a pack as deep as the shipped ones but narrow; return its program and its pages."""
    shipped = next(one.manifest.network for one in parts.lineup.routable if one.id == PACKS[0])
    assert isinstance(shipped, PackArchitecture)
    target = target_of("cpu")
    build = Build(architecture=replace(shipped, blocks=NARROW), target=target, dtype=target.dtype)
    executable = Executable.load(ensure_artefacts([build], parts.config.cache_dir)[0], parts.device)
    weights = PlacedWeights(executable, parts.device)
    return weights.bind("run"), make_pages(pages_of(executable.meta), parts.device, 600)


def clock(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes, the mean of `CALLS`."""
    begun = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - begun) / CALLS


@torch.no_grad()
def blends(name: str, files: list[Path], count: int) -> dict[str, float]:
    """Return perplexities of held-out answers under both packs, and cosines of the packs' outputs there."""
    catalog = discover()
    base = load_shipped(catalog.find("nano-base").pack.directory)
    packs = {pack: load_shipped(catalog.find(pack).pack.directory) for pack in PACKS}
    encode = Encoder(Tokenizer.from_file(str(catalog.find("nano-base").pack.tokenizer)), response_only=True).encode
    records = [record for file in files for record in read_records(file)]
    random.Random(0).shuffle(records)
    records = records[:count]

    def lost(blend: dict[str, float], shares: Shares | None = None) -> float:
        (scored,) = Scorer(base, packs, encode, longest=LONGEST, shares=shares).score(records, [blend])
        return sum(scored, Likelihood()).perplexity

    out = {f"{name}: perplexity, {pack}": lost({pack: 1.0}) for pack in PACKS}
    for first, second in (PACKS, PACKS[::-1]):
        for fusion in BUILTIN:
            for limit in LIMITS:
                told = f"{name}: perplexity, {first} leads, {fusion.name}, {limit:g}"
                out[told] = lost({first: LEADING, second: 1 - LEADING}, Shares(fusion, limit))
    cosines, agreeing = [], []
    alone = [Whole(base, pack, 0, frozen_base=True) for pack in packs.values()]
    for record in records:
        ids, learn = (part[:LONGEST] for part in encode(record))
        rows = torch.tensor([row for row in range(len(ids) - 1) if learn[row + 1]])
        if not len(rows):
            continue
        hidden = base.understand(torch.tensor(ids), Windows(1))
        outputs = [pack(hidden, Windows(1)) for pack in packs.values()]
        cosines.append(functional.cosine_similarity(*outputs, dim=-1)[rows].numpy())
        best = [(one(torch.tensor([ids]), None)[rows] @ one.head_weight().T).argmax(-1) for one in alone]
        agreeing.append((best[0] == best[1]).numpy())
    cosine, agree = np.concatenate(cosines), np.concatenate(agreeing)
    out |= {f"{name}: cosine, {part} %": float(np.percentile(cosine, part)) for part in (1, 5, 25, 50, 75, 95, 99)}
    for low, high in pairwise((-1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.01)):
        inside = (cosine >= low) & (cosine < high)
        out[f"{name}: tokens of cosine {low:g}..{min(high, 1):g}"] = float(inside.mean())
        if inside.any():
            out[f"{name}: same best token at {low:g}..{min(high, 1):g}"] = float(agree[inside].mean())
    return out


if __name__ == "__main__":
    main()
