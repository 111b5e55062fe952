"""Who answers a message: held-out prompts, requests as people type them, and a domain that the router never met.

    python tests/bench/routing.py DATA [--leave-out] [--show]

DATA holds router/domains_test and router/test. The shipped packs are used as `modularbase route` uses them. Natural
requests were written by hand and nothing is trained on them; the router was chosen while looking at those of
natural_requests.jsonl ("natural"), not of natural_test.jsonl ("natural, unseen"). --leave-out trains the router
once more for each domain without it, makes that pack's keys from its examples and asks how many of its test
prompts reach it.
A general message is right if general chat answers. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from modularbase_core.config import EngineConfig
from modularbase_core.host.messages import Messages
from modularbase_core.packs.catalog import discover
from modularbase_core.packs.keys import background_centres, routing_keys, scores
from modularbase_core.train.messages import Labelled, read_messages
from modularbase_core.train.recipe import read_recipe
from modularbase_core.train.router import fit_router, queries, understand_messages
from modularbase_core.train.ship import load_shipped

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
NATURAL_TEST = Path(__file__).with_name("natural_test.jsonl")
RECIPE = Path(__file__).parents[2] / "plugins_example/modularbase-nano/recipes/router.toml"
THRESHOLD = EngineConfig().threshold

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
        "natural, unseen": read(NATURAL_TEST),
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
    for domain in dict.fromkeys(wanted.tolist()):  # how many of the others' messages it takes
        others = chosen[wanted != domain]
        out[f"others to {domain}"] = float((others == domain).mean()) if len(others) else 0.0
    if show:
        for row, given in zip(rows, chosen, strict=True):
            if given != row["domain"]:
                print(f"  {row['domain']} -> {given}: {row['text'][:100]}")
    return out


def shipped(messages: Messages, threshold: float) -> Choose:
    names = {pack: domain for domain, pack in DOMAINS.items()}

    def choose(texts: Sequence[str]) -> list[str]:
        out = []
        for given in messages.scores(texts):
            best = max(given, key=lambda pack: given[pack])
            out.append(names[best] if given[best] >= threshold else "general")
        return out

    return choose


def leave_out(data: Path, sets: dict[str, list[Row]]) -> dict[str, float]:
    """Share of each domain's held-out and natural prompts that reach its pack, where no router training saw it."""
    recipe = read_recipe(RECIPE)
    base = load_shipped(recipe.folder / recipe.over / "base")
    tokenizer = Tokenizer.from_file(str(discover().find("nano-base").pack.tokenizer))
    tokenizer.encode_special_tokens = True
    parts = [read_messages([source], data, recipe.folder, recipe.seed) for source in recipe.mix]
    messages = [message for part in parts for message in part]
    domains = np.array([message.domain for message in messages])
    shares = [np.full(len(part), source.share / len(part)) for source, part in zip(recipe.mix, parts, strict=True)]
    hidden = understand_messages(base, tokenizer, [message.text for message in messages], quiet=False)
    asked = {
        (domain, name): understand_messages(
            base, tokenizer, [row["text"] for row in sets[name] if row["domain"] == domain], quiet=True
        )
        for domain in DOMAINS
        for name in ("held-out", "natural, unseen")
    }
    out: dict[str, float] = {}
    for left in DOMAINS:
        known = [Labelled("") if message.domain == left else message for message in messages]
        chance = np.where(domains == left, 0.0, np.concatenate(shares))
        router = fit_router(recipe, recipe.router, hidden, known, chance, quiet=False)
        drawn = np.random.default_rng(0).permutation(len(messages))
        some = {domain: drawn[domains[drawn] == domain][:4000] for domain in ("general", *DOMAINS)}
        query = {domain: queries(router, hidden, chosen) for domain, chosen in some.items()}
        background = background_centres(query["general"])
        packs = {domain: routing_keys(query[domain], query["general"], background) for domain in DOMAINS}
        for name in ("held-out", "natural, unseen"):
            mine = queries(router, asked[left, name])
            given = {d: scores(mine, k["keys"], k["scale"][0], k["bias"][0], background) for d, k in packs.items()}
            best = np.stack(list(given.values())).max(0)
            out[f"{left}, {name}"] = float(((given[left] >= best) & (given[left] >= THRESHOLD)).mean())
        print("left out: " + "  ".join(f"{key} {value:.3f}" for key, value in out.items() if left in key), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--leave-out", action="store_true")
    parser.add_argument("--threshold", type=float, default=EngineConfig().threshold)
    parser.add_argument("--show", action="store_true", help="print what went elsewhere")
    arguments = parser.parse_args()
    sets = test_sets(arguments.data)
    messages = Messages.open(EngineConfig(), discover())
    results = {
        name: measure(rows, shipped(messages, arguments.threshold), arguments.show) for name, rows in sets.items()
    }
    for name, result in results.items():
        print(f"{name} ({len(sets[name])}): " + "  ".join(f"{key} {value:.3f}" for key, value in result.items()))
    if arguments.leave_out:
        results["left out"] = leave_out(arguments.data, sets)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
