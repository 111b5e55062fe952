"""Who answers a message: held-out prompts, requests as people type them, and a domain that the router never met.

    python tests/bench/routing.py DATA [--leave-out] [--show]

DATA holds router/domains_test and router/test. The shipped packs are used as `modularbase route` uses them; natural
requests are those of natural_requests.jsonl, which nothing is trained on. --leave-out trains the router once more for
each domain without it, makes that pack's keys from its examples and asks how many of its test prompts reach it.
A general message is right if general chat answers. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modularbase_core.config import EngineConfig
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import discover
from modularbase_core.packs.keys import background_centres, routing_keys, scores

DOMAINS = {
    "python": "python_code",
    "reasoning": "reasoning",
    "medical": "medical",
    "legal": "legal",
    "creative": "creative_writing",
}
COVERED_INTENTS = ("qa_maths", "general_joke")
"""Intents of router/test that a pack covers (reasoning, creative writing)."""
NATURAL = Path(__file__).with_name("natural_requests.jsonl")
RECIPE = Path(__file__).parents[2] / "plugins_example/modularbase-nano/recipes/router.toml"
THRESHOLD = 0.5

Row = dict[str, str]
Choose = Callable[[Sequence[str]], list[str]]


def read(path: Path) -> list[Row]:
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().splitlines()]


def test_sets(data: Path) -> dict[str, list[Row]]:
    off_domain = [row for row in read(data / "router/test.jsonl.xz") if row["intent"] not in COVERED_INTENTS]
    return {
        "held-out": read(data / "router/domains_test.jsonl.xz"),
        "natural": read(NATURAL),
        "off-domain": [{**row, "domain": "general"} for row in off_domain],
    }


def measure(rows: list[Row], choose: Choose, show: bool = False) -> dict[str, float]:
    chosen, wanted = np.array(choose([row["text"] for row in rows])), np.array([row["domain"] for row in rows])
    out = {"accuracy": float((chosen == wanted).mean())}
    for domain in dict.fromkeys(wanted.tolist()):
        out[domain] = float((chosen[wanted == domain] == domain).mean())
    for language in dict.fromkeys(row["lang"] for row in rows):
        mine = np.array([row["lang"] == language for row in rows])
        out[language] = float((chosen == wanted)[mine].mean())
    if (wanted != "general").any():
        out["falls to general chat"] = float((chosen[wanted != "general"] == "general").mean())
    if show:
        for row, given in zip(rows, chosen, strict=True):
            if given != row["domain"]:
                print(f"  {row['domain']} -> {given}: {row['text'][:100]}")
    return out


def shipped(messages: Messages) -> Choose:
    names = {pack: domain for domain, pack in DOMAINS.items()}

    def choose(texts: Sequence[str]) -> list[str]:
        out = []
        for given in messages.scores(texts):
            best = max(given, key=lambda pack: given[pack])
            out.append(names[best] if given[best] >= THRESHOLD else "general")
        return out

    return choose


def leave_out(data: Path, sets: dict[str, list[Row]], runs: Path) -> dict[str, float]:
    """Share of each domain's held-out and natural prompts that reach its pack, where no router training saw it."""
    from dataclasses import replace

    import torch
    from tokenizers import Tokenizer

    from modularbase_core.train.messages import read_messages
    from modularbase_core.train.recipe import read_recipe
    from modularbase_core.train.router import fit_router, queries, understand_messages
    from modularbase_core.train.ship import load_shipped

    torch.set_num_threads(1)
    recipe = read_recipe(RECIPE)
    base = load_shipped(recipe.folder / recipe.over / "base")
    tokenizer = Tokenizer.from_file(str(recipe.folder / recipe.tokenizer))
    tokenizer.encode_special_tokens = True
    cache: dict[str, torch.Tensor] = {}

    def understand(texts: Sequence[str]):  # messages that several routers read are understood once
        from modularbase_core.train.router import Hidden

        new = [text for text in dict.fromkeys(texts) if text not in cache]
        if new:
            hidden = understand_messages(base, tokenizer, new, quiet=True)
            cache.update(
                (text, hidden.rows[a:b]) for text, (a, b) in zip(new, itertools.pairwise(hidden.begin), strict=True)
            )
        parts = [cache[text] for text in texts]
        return Hidden(torch.cat(parts), np.cumsum([0, *map(len, parts)]))

    out: dict[str, float] = {}
    for left in DOMAINS:
        parts = [read_messages([source], data, recipe.folder, recipe.seed) for source in recipe.mix]
        kept = [[one for one in part if one.domain != left] for part in parts]
        own = [one.text for part in parts for one in part if one.domain == left]
        own = [own[i] for i in np.random.default_rng(0).permutation(len(own))[:2500]]
        messages = [one for part in kept for one in part]
        pairs = zip(recipe.mix, kept, strict=True)
        chance = np.concatenate([np.full(len(part), source.share / max(1, len(part))) for source, part in pairs])
        fewer = replace(recipe, tokens=recipe.tokens // 2)
        router = fit_router(fewer, recipe.router, understand([m.text for m in messages]), messages, chance, quiet=True)

        def query(texts: Sequence[str], router=router) -> NDArray[np.float32]:
            return queries(router, understand(texts))

        others = query([one.text for one in read_messages(recipe.others, data, recipe.folder, recipe.seed)])
        background = background_centres(others)
        packs = {left: routing_keys(query(own), others, background)}
        for domain in DOMAINS:
            if domain != left:
                its = [one.text for one in messages if one.domain == domain]
                its = [its[i] for i in np.random.default_rng(0).permutation(len(its))[:2500]]
                packs[domain] = routing_keys(query(its), others, background)
        for name in ("held-out", "natural"):
            asked = query([row["text"] for row in sets[name] if row["domain"] == left])
            given = {d: scores(asked, k["keys"], k["scale"][0], k["bias"][0], background) for d, k in packs.items()}
            best = np.stack(list(given.values())).max(0)
            out[f"{left}, {name}"] = float(((given[left] >= best) & (given[left] >= THRESHOLD)).mean())
        print(
            f"left out: {left}  " + "  ".join(f"{k} {v:.3f}" for k, v in out.items() if k.startswith(left)), flush=True
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--leave-out", action="store_true")
    parser.add_argument("--show", action="store_true", help="print what went elsewhere")
    arguments = parser.parse_args()
    sets = test_sets(arguments.data)
    messages = Messages.open(EngineConfig(), discover())
    results = {name: measure(rows, shipped(messages), arguments.show) for name, rows in sets.items()}
    for name, result in results.items():
        print(f"{name} ({len(sets[name])}): " + "  ".join(f"{key} {value:.3f}" for key, value in result.items()))
    if arguments.leave_out:
        results["left out"] = leave_out(arguments.data, sets, Path())
    print(json.dumps(results))


if __name__ == "__main__":
    main()
