"""What freezing the base costs: each pack against a monolith of the same size, fine-tuned on the same tokens.

The monolith is the same base and trunk, and the same part of the head, with every weight learning, by the pack's own
recipe: same start, texts and steps; what AdamW learns at half the rate, about what the base learnt with, as embeddings
that are there already need less than a part of the head that is new. Perplexity on the pack's held-out records, of
float weights for both; beside them base + general chat before either, and the pack's ratio to each. Bars: at most
0.7 x general chat, at most 1.05 x the monolith. A run that is in RUNS already is not trained again; an interrupted one
goes on.

    python tests/bench/monolith.py DATA RECIPE... [--runs RUNS] [--tokens 2000000] [--records 200]
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

from quality import HELD_OUT
from tokenizers import Tokenizer

from modularbase_core.packs.catalog import discover
from modularbase_core.train.checkpoints import build_model, load_weights, part_of
from modularbase_core.train.corpus import Record, read_records
from modularbase_core.train.installed import complete
from modularbase_core.train.perplexity import perplexity
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.tokens import load_tokenizer, recipe_controls

BAR_CHAT, BAR_MONOLITH = 0.7, 1.05


def main() -> None:
    """Train what is not trained, measure, and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--tokens", type=int, default=0, help="of each run; 0 for the recipe's own")
    parser.add_argument("--records", type=int, default=200)
    options = parser.parse_args()
    rows = []
    for path in options.recipes:
        recipe = read_recipe(path)
        if options.tokens:
            share = options.tokens / recipe.tokens
            mix = tuple(replace(source, tokens=int(share * source.tokens)) for source in recipe.mix)
            recipe = replace(recipe, name=f"{recipe.name}-{options.tokens}", tokens=options.tokens, mix=mix)
        rows.append(measure(recipe, options.data, options.runs, options.records))
        print(
            f"{rows[-1]['pack']:24} general chat {rows[-1]['general_chat']:7.2f}   pack {rows[-1]['with_pack']:7.2f}   "
            f"monolith {rows[-1]['monolith']:7.2f}   pack/chat {rows[-1]['to_chat']:.2f} (bar {BAR_CHAT})   "
            f"pack/monolith {rows[-1]['to_monolith']:.3f} (bar {BAR_MONOLITH})",
            flush=True,
        )
    print(json.dumps(rows))


def measure(recipe: Recipe, data: Path, runs: Path, count: int) -> dict[str, float | str]:
    """Return the perplexities of one pack's recipe: before, as a pack, as a monolith."""
    records = held_out(recipe, data, count)
    whole = replace(recipe, stage="base", name=f"{recipe.name}-monolith", other_rate=recipe.other_rate / 2)
    whole = replace(whole, manifest=None, examples=(), others=())
    found = {"general_chat": _perplexity(recipe, runs, None, records)}
    for kind, one in (("with_pack", recipe), ("monolith", whole)):
        found[kind] = _perplexity(recipe, runs, run_recipe(one, data=data, runs=runs, quiet=True), records)
    return {
        "pack": recipe.name,
        "tokens": float(recipe.tokens),
        **found,
        "to_chat": found["with_pack"] / found["general_chat"],
        "to_monolith": found["with_pack"] / found["monolith"],
    }


def held_out(recipe: Recipe, data: Path, count: int) -> list[Record]:
    """Return the held-out records of the pack that the recipe ships."""
    names = HELD_OUT[Path(recipe.ship).name]
    records = [record for name in names for record in read_records(data / f"{name}.jsonl.xz")]
    random.Random(0).shuffle(records)
    return records[:count]


def _perplexity(recipe: Recipe, runs: Path, checkpoint: Path | None, records: list[Record]) -> float:
    recipe = complete(recipe, runs, discover)
    tokenizer: Tokenizer = load_tokenizer(recipe)
    model = build_model(recipe, runs, recipe_controls(recipe, tokenizer).border)
    if checkpoint is not None:
        load_weights(model.base, part_of(checkpoint, "base."), checkpoint)
        load_weights(model.pack, part_of(checkpoint, "pack."), checkpoint)
    return perplexity(model.base.eval(), model.pack.eval(), records, tokenizer)


if __name__ == "__main__":
    main()
