"""What a pack that grows learns, keeps and costs the others: perplexities, and who answers what, before and after.

    python tests/bench/grow.py DATA [--tokens 100000] [--only more_python cooking]

- more_python: python_code learns python/more_train and python/more_text_train, beside what it learnt before;
- tldr: python_code learns help with the command line, which routing leads to it (records of chat/train);
- cooking: recipes (based.cooking and HowToCook of chat/train and chat/more_train), which reach no pack, make a new one.

Routing is measured on the sets of routing.py, whose packs' keys are the shipped ones but for the pack that grew; a
message that now reaches the new pack counts as lost, also where it asks about cooking. The bar: no set loses more than
one point. "found": of the new records that were kept out, how many messages reach the pack.
Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from routing import DOMAINS, test_sets

from modularbase_core.config import EngineConfig
from modularbase_core.device.weights import Routing, read_routing
from modularbase_core.host.keys import background_of
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import discover
from modularbase_core.packs.keys import apart, scores
from modularbase_core.sdk.manifest import Manifest, write_manifest
from modularbase_core.train.corpus import read_records
from modularbase_core.train.decision import decide
from modularbase_core.train.grow import read_growth
from modularbase_core.train.kept import Material
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import ship_recipe

OFF_DOMAIN = 1500
"""Of the off-domain messages, so many."""
ROUTED = 600
OLD = {"python/train": 1.0, "python/text_train": 1.0}
NEW = {
    "more_python": ("python/more_train", "python/more_text_train"),
    "tldr": ("chat/train", "tldr-pages"),
    "cooking": ("chat/train", "chat/more_train", "based.cooking", "HowToCook"),
}
FEW = {"batch_tokens": 1024, "windows": ((1.0, 512),), "warmup_steps": 5, "decay_share": 0.7, "compile": False}
RATES = {"matrix_rate": 0.005, "other_rate": 0.001, "logs": ("none",), "response_only": True}


class Sets:
    """Labelled messages, read once, and who answers them by some keys."""

    def __init__(self, data: Path) -> None:
        self.messages = Messages.open(EngineConfig(), discover())
        sets = test_sets(data)
        sets["off-domain"] = sets["off-domain"][:OFF_DOMAIN]
        self.queries = {name: self.messages.queries([row["text"] for row in rows]) for name, rows in sets.items()}
        self.wanted = {name: np.array([row["domain"] for row in rows]) for name, rows in sets.items()}
        self.background = background_of(self.messages.lineup)
        self.keys = {
            domain: read_routing(discover().find(pack).pack.routing, self.background.centres.shape[1])
            for domain, pack in DOMAINS.items()
        }

    def chosen(self, queries: NDArray[np.float32], keys: dict[str, Routing]) -> NDArray[np.str_]:
        """Return the domain that each query reaches."""
        given = np.stack(
            [scores(queries, k.keys, k.scale, k.bias, apart(self.background.centres, k.against)) for k in keys.values()]
        )
        best = np.array(list(keys))[given.argmax(0)]
        return np.where(given.max(0) >= EngineConfig().threshold, best, "general")

    def accuracy(self, keys: dict[str, Routing]) -> dict[str, float]:
        """Return the share of messages that reach their domain, by set."""
        return {
            name: float((self.chosen(queries, keys) == self.wanted[name]).mean())
            for name, queries in self.queries.items()
        }


def sources_of(what: str, data: Path, folder: Path) -> tuple[Source, ...]:
    """Return the new records as a mix; those of one origin are written into a file of their own."""
    names = NEW[what]
    files = [name for name in names if (data / f"{name}.jsonl.xz").exists()]
    origins = [name for name in names if name not in files]
    if not origins:
        return tuple(Source(files=(f"{name}.jsonl.xz",), tokens=1) for name in files)
    path = folder / f"{what}.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for name in files:
            with lzma.open(data / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
                out.writelines(line for line in lines if json.loads(line)["source"] in origins)
    return (Source(files=(str(path),), tokens=1),)


def grow(what: str, data: Path, folder: Path, tokens: int, sets: Sets) -> dict[str, object]:
    """Grow one pack and measure it."""
    begun = time.monotonic()
    new = what == "cooking"
    mix = sources_of(what, data, folder)
    replay = () if new else tuple(Source(files=(f"{name}.jsonl.xz",), tokens=1) for name in OLD)
    ship = folder / what
    recipe = Recipe(
        **{"name": what, "stage": "grow", "base": "nano-base", "start": "general_chat" if new else "python_code"},
        **{"mix": mix, "replay": replay, "replay_share": 0.0 if new else 0.3, "ship": str(ship), "tokens": tokens},
        **FEW,
        **RATES,
    )
    out: dict[str, object] = {}
    if what != "more_python":
        texts = [one.messages[0]["content"] for one in read_records(Path(mix[0].files[0]))]
        some = [texts[number] for number in np.random.default_rng(0).permutation(len(texts))[:ROUTED]]
        queries, given = sets.messages.queries_and_scores(some)
        told = decide(
            queries, given, sets.background, general="general_chat", reach=EngineConfig().threshold, threshold=0.5
        )
        out["decided"] = told.pack or "new"
        print(f"{what}: {told.why}", flush=True)
    if new:
        draft = {"schema": 1, "id": "cooking", "version": "0.1.0", "base": "nano-base", "base_compatibility": ["1.0"]}
        ship.mkdir()
        write_manifest(ship, Manifest.from_dict(draft))
    run_recipe(recipe, data=data, runs=folder / "runs", quiet=True)
    ship_recipe(recipe, data=data, runs=folder / "runs", quiet=True)
    growth = read_growth(folder / "runs", what)
    for name in ("new", "replay"):
        if growth["before"][name] is not None:
            out[f"{name} before"], out[f"{name} after"] = growth["before"][name], growth["after"][name]
    routing = read_routing(ship / "routing.safetensors", sets.background.centres.shape[1])
    keys = {**sets.keys, "cooking" if new else "python": routing}
    before, after = sets.accuracy(sets.keys), sets.accuracy(keys)
    out |= {f"{name}: points lost": round(100 * (before[name] - after[name]), 2) for name in before}
    kept = Material(folder / "runs" / what / "material", 0, 0).kept_out("new")
    asked = [one.messages[0]["content"] if one.text is None else one.text[:400] for one in kept]
    reached = sets.messages.queries(asked)
    for when, some_keys in (("before", sets.keys), ("after", keys)):
        found = sets.chosen(reached, some_keys) == ("cooking" if new else "python")
        out[f"found {when}"] = round(float(found.mean()), 3)
    out["keys"], out["seconds"] = len(routing.keys), round(time.monotonic() - begun)
    return out


def main() -> None:
    """Grow each and print what came of it, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", choices=list(NEW), default=list(NEW))
    options = parser.parse_args()
    data = options.data.resolve()
    sets = Sets(data)
    results = {"before": sets.accuracy(sets.keys)}
    print("routing before: " + "  ".join(f"{name} {value:.4f}" for name, value in results["before"].items()))
    with tempfile.TemporaryDirectory() as folder:
        for what in options.only:
            results[what] = grow(what, data, Path(folder), options.tokens, sets)
            for name, value in results[what].items():
                print(f"  {name:<34}{value}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
