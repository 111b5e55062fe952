"""A mixture of experts against a dense pack of the same active parameters: what it learns, how evenly, what it costs.

Two packs learn the same Python texts over the installed nano base, both from nothing, in the same steps: 8 experts of
which a token passes through 2, and a feed-forward twice as wide as one of them. Then:

- perplexity of texts that neither has read; at most the dense pack's is wanted of the mixture;
- how many times its even share the busiest expert of each layer has, over those texts; 2 at most is wanted;
- the work of a token in the experts, routed and run through all eight: as the formula says, and as counted in the
  products of matrices that were run; a quarter is wanted. Bytes: weights read for one token.

Training goes on where it stopped if RUNS is kept; it is a few minutes a pack on two cores.

    python tests/bench/mixture.py DATA [--runs RUNS] [--tokens 400000] [--optimiser muon] [--records 0] [--threads 0]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from modularbase_core.graph import ops
from modularbase_core.graph.blocks import Mixture
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.graph.routed import most_over_even
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import BaseArchitecture, Blocks, PackArchitecture
from modularbase_core.train.checkpoints import part_of
from modularbase_core.train.corpus import Record, read_records
from modularbase_core.train.encoding import Encoder
from modularbase_core.train.perplexity import perplexity
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import load_shipped

EXPERTS, CHOSEN, EXPERT_WIDTH, LAYERS = 8, 2, 192, 3
TEXTS = ("python/text_train.jsonl.xz", "python/more_text_train.jsonl.xz")
HELD_OUT = ("python/text_valid", "python/valid")
SEED = 11


def main() -> None:
    """Train both, measure, print the table and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, help="where runs are kept; a folder that is removed if left out")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--optimiser", default="muon", choices=("muon", "adamw"))
    parser.add_argument("--records", type=int, default=0, help="at most so many held-out records; 0 for all")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    catalog = discover()
    directory = catalog.find("nano-base").pack
    base = load_shipped(directory.directory)
    assert isinstance(base, Base)
    tokenizer = Tokenizer.from_file(str(directory.tokenizer))
    records = [record for name in HELD_OUT for record in read_records(options.data / f"{name}.jsonl.xz")]
    random.Random(0).shuffle(records)
    records = records[: options.records or None]
    figures: dict[str, Any] = {"tokens": options.tokens, "optimiser": options.optimiser}
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        packs = {}
        for name, shape in shapes(directory.manifest.network).items():
            began = time.monotonic()
            packs[name] = trained(name, shape, options, runs)
            figures[f"{name}_minutes"] = (time.monotonic() - began) / 60
    for name, pack in packs.items():
        figures[f"{name}_parameters"] = sum(p.numel() for p in pack.parameters())
        figures[f"{name}_active_parameters"] = active_parameters(pack)
        figures[f"{name}_perplexity"] = perplexity(base, pack, records, tokenizer)
    figures["perplexity_ratio"] = figures["mixture_perplexity"] / figures["dense_perplexity"]
    hidden, counts = routed_over(base, packs["mixture"], records, tokenizer)
    figures["most_over_even_by_layer"] = [round(most_over_even([layer]), 3) for layer in counts]
    figures |= work(packs["mixture"], hidden)
    for name, value in figures.items():
        print(f"{name:<32}{value:>14,.3f}" if isinstance(value, float) else f"{name:<32}{value!s:>14}")
    print(json.dumps(figures))


def shapes(base: Any) -> dict[str, Blocks]:
    """Return the blocks of both packs, of the base's widths."""
    assert isinstance(base, BaseArchitecture)
    dense = replace(base.blocks, ffn_size=CHOSEN * EXPERT_WIDTH, experts=0)
    return {"dense": dense, "mixture": replace(dense, ffn_size=EXPERT_WIDTH, experts=EXPERTS, experts_per_token=CHOSEN)}


def trained(name: str, shape: Blocks, options: argparse.Namespace, runs: Path) -> Pack:
    """Train a pack from nothing on the texts, or take the run that is there; return it."""
    architecture = PackArchitecture(base_hidden_size=shape.hidden_size, blocks=shape, layers=LAYERS)
    recipe = Recipe(
        name=f"{name}-{options.optimiser}-{options.tokens}",
        stage="pack",
        seed=SEED,
        tokens=options.tokens,
        batch_tokens=4096,
        windows=((1.0, 512),),
        mix=(Source(files=TEXTS, tokens=options.tokens + 100_000),),
        base="nano-base",
        matrix_rate=0.015,
        other_rate=0.002,
        warmup_steps=10,
        decay_share=0.7,
        optimiser=options.optimiser,
        threads=options.threads,
        logs=("none",),
        pack=architecture,
    )
    checkpoint = run_recipe(recipe, data=options.data, runs=runs, compiled=False)
    pack = Pack(architecture)
    pack.load_state_dict(part_of(checkpoint, "pack."))
    return pack.eval().requires_grad_(False)


def active_parameters(pack: Pack) -> int:
    """Count the parameters that one token passes through."""
    idle = 0
    for mixture in (one for one in pack.modules() if isinstance(one, Mixture)):
        share = 1 - mixture.chosen / len(mixture.down)
        idle += round(share * (mixture.gate_up.numel() + mixture.down.numel()))
    return sum(p.numel() for p in pack.parameters()) - idle


@torch.no_grad()
def routed_over(
    base: Base, pack: Pack, records: Sequence[Record], tokenizer: Tokenizer
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the records; return what the first mixture reads of the last one [T, E], and each layer's counts [X]."""
    encoder = Encoder(tokenizer, response_only=True)
    totals = [torch.zeros(EXPERTS, dtype=torch.int64) for _ in range(LAYERS)]
    seen: list[torch.Tensor] = []
    mixtures = [one for one in pack.modules() if isinstance(one, Mixture)]
    hook = mixtures[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for record in records:
        pack(base.understand(torch.tensor(encoder.encode(record)[0][:1024]), Windows(1)), Windows(1))
        for total, one in zip(totals, mixtures, strict=True):
            total += one.routed.counts
    hook.remove()
    return max(seen, key=len), totals


class _WeightBytes(TorchDispatchMode):
    """Counts the bytes of the weights that products of at least one row read."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name() in ("aten::mm", "aten::addmm") and args[-2].shape[0]:
            self.bytes += args[-1].numel() * args[-1].element_size()
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def work(pack: Pack, x: torch.Tensor) -> dict[str, float]:
    """Count what the experts of the first mixture do for rows `x` [T, E], routed and all of them."""
    mixture = next(one for one in pack.modules() if isinstance(one, Mixture))
    weights = (mixture.gate_up, mixture.down, mixture.activation)
    score, ids = torch.topk(mixture.router(x), mixture.chosen, dim=-1)
    every = torch.arange(EXPERTS).expand(len(x), -1)
    chosen = {"routed": (ids, score.softmax(-1)), "all": (every, mixture.router(x).softmax(-1))}
    out: dict[str, float] = {}
    for name, (experts, gates) in chosen.items():
        one_expert = (mixture.gate_up.numel() + mixture.down.numel()) // EXPERTS
        out[f"{name}_flops_by_formula"] = float(2 * one_expert * experts.shape[1])
        with FlopCounterMode(display=False) as flops:
            ops.moe_reference(x, experts, gates, *weights)
        out[f"{name}_flops_counted"] = flops.get_total_flops() / len(x)
        out[f"{name}_weight_bytes_by_formula"] = float(one_expert * mixture.down.element_size() * experts.shape[1])
        with _WeightBytes() as read:
            for row in range(32):
                one = slice(row, row + 1)
                ops.moe_reference(x[one], experts[one], gates[one], *weights)
        out[f"{name}_weight_bytes_counted"] = read.bytes / 32
        seconds = []
        for _ in range(7):
            began = time.process_time()
            ops.moe_reference(x, experts, gates, *weights)
            seconds.append(time.process_time() - began)
        out[f"{name}_microseconds_a_token"] = sorted(seconds)[3] / len(x) * 1e6
    for what in ("flops_by_formula", "flops_counted", "weight_bytes_by_formula", "weight_bytes_counted"):
        out[f"{what}_ratio"] = out[f"routed_{what}"] / out[f"all_{what}"]
    return out


if __name__ == "__main__":
    main()
