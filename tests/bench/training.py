"""Training speed: model FLOP/s of a step of the nano base, beside this CPU's matrix products and the Trainer of
Hugging Face on a Llama of the same shape, in one run.

Measures, at windows of 256, 512 and 1024, steps of 4096 tokens: ours as the recipe says (torch.compile, bf16, Muon,
documents kept apart), and transformers' Trainer (bf16, AdamW; no documents), eager as it is by default and with
--compile-peer compiled too. Rounds alternate; the median step of each counts. FLOPs are 6 a weight of a matrix and
token, and 6 H D N a layer and token of attention: what causal attention needs, whoever computes more. On a machine
that does other things too, --busy takes one thread and its processor time.

    python tests/bench/training.py [--rounds 3] [--steps 5] [--windows 256 512 1024] [--compile-peer] [--busy]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from modularbase_core.device.target import physical_cores
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.sdk.architecture import BaseArchitecture, PackArchitecture
from modularbase_core.train.language import Loss, Whole
from modularbase_core.train.optimisers import Optimisers
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.schedule import Schedule

RECIPE = Path(__file__).parents[2] / "plugins_example/modularbase-nano/recipes/base.toml"
DOCUMENT_TOKENS = 300
BEGIN = 0


def main() -> None:
    """Measure all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of a round")
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--compile-peer", action="store_true", help="measure a compiled peer as well")
    parser.add_argument("--busy", action="store_true", help="one thread, timed by the processor's clock")
    options = parser.parse_args()
    threads = 1 if options.busy else physical_cores()
    clock = time.thread_time if options.busy else time.perf_counter
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    recipe = read_recipe(RECIPE)
    figures: dict[str, Any] = {"threads": threads, "matmul_gflops": matmul_rate(clock) / 1e9, "windows": {}}
    print(f"{threads} threads, bf16 products of 2048 x 2048: {figures['matmul_gflops']:.0f} GFLOP/s")
    print(f"{'window':>6}{'':<16}{'s a step':>9}{'tokens/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'ours is':>9}")
    for length in options.windows:
        roads = {"ours": Ours(recipe, length, clock), "trainer": Peer(recipe, length, clock, compiled=False)}
        if options.compile_peer:
            roads["trainer compiled"] = Peer(recipe, length, clock, compiled=True)
        seconds: dict[str, list[float]] = {name: [] for name in roads}
        for _ in range(options.rounds):
            for name, road in roads.items():
                seconds[name] += road.steps(options.steps)
        row = {name: statistics.median(taken) for name, taken in seconds.items()}
        flops = step_flops(recipe, length)
        for name, taken in row.items():
            rate = flops / taken / 1e9
            print(
                f"{length:>6}  {name:<16}{taken:>7.3f}{recipe.batch_tokens / taken:>10.0f}{rate:>9.0f}"
                f"{rate / figures['matmul_gflops']:>9.2f}{taken / row['ours']:>8.2f}x",
                flush=True,
            )
        figures["windows"][length] = {
            **{f"{name.replace(' ', '_')}_s": taken for name, taken in row.items()},
            "of_peak": flops / row["ours"] / 1e9 / figures["matmul_gflops"],
            "ratio": row["trainer"] / row["ours"],
        }
    print(json.dumps(figures))


class Ours:
    """Our step, as `train.loop` makes it."""

    def __init__(self, recipe: Recipe, length: int, clock: Callable[[], float]) -> None:
        assert isinstance(recipe.architecture, BaseArchitecture)
        assert isinstance(recipe.pack, PackArchitecture)
        torch.manual_seed(0)
        self._clock = clock
        model = Whole(Base(recipe.architecture), Pack(recipe.pack), BEGIN, frozen_base=False)
        self._loss, self._batch = Loss(model, compiled=True), batch_of(recipe, length)
        self._optimisers = Optimisers(model, Schedule(steps=1000), recipe.optimiser)
        self.steps(2)  # compile

    def steps(self, count: int) -> list[float]:
        """Return the seconds of each of some steps."""
        taken = []
        for _ in range(count):
            begun = self._clock()
            self._loss(*self._batch).backward()
            self._optimisers.clip()
            self._optimisers.step(0)
            self._optimisers.clear()
            taken.append(self._clock() - begun)
        return taken


class Peer:
    """The step of transformers' Trainer on a Llama with our layers, width, heads and vocabulary."""

    def __init__(self, recipe: Recipe, length: int, clock: Callable[[], float], *, compiled: bool) -> None:
        assert isinstance(recipe.architecture, BaseArchitecture)
        assert isinstance(recipe.pack, PackArchitecture)
        base, blocks = recipe.architecture, recipe.architecture.blocks
        torch.manual_seed(0)
        self._model: nn.Module = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=base.vocabulary_size,
                hidden_size=blocks.hidden_size,
                intermediate_size=blocks.ffn_size,
                num_hidden_layers=base.understanding_layers + recipe.pack.layers + base.fusion_layers,
                num_attention_heads=blocks.heads,
                num_key_value_heads=blocks.kv_heads,
                head_dim=blocks.head_size,
                max_position_embeddings=base.window.trained_tokens,
                tie_word_embeddings=base.tied_embedding,
                use_cache=False,
            )
        )
        self._rows, self._clock, self._compiled = Rows(batch_of(recipe, length)[0][:, :-1]), clock, compiled

    def steps(self, count: int) -> list[float]:
        """Return the seconds of each of some steps, after two that warm up."""
        taken = StepTimes(self._clock)
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingArguments(
                output_dir=folder,
                max_steps=count + 2,
                per_device_train_batch_size=len(self._rows),
                bf16=True,
                use_cpu=True,
                torch_compile=self._compiled,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            trainer = Trainer(self._model, settings, train_dataset=self._rows, callbacks=[taken])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return taken.seconds[2:]


class StepTimes(TrainerCallback):  # type: ignore[misc]  # the Trainer's package is known in benches only
    """Takes the time of each step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: list[float] = []
        self._clock, self._begun = clock, 0.0

    def on_step_begin(self, *given: Any, **more: Any) -> None:
        """Start."""
        self._begun = self._clock()

    def on_step_end(self, *given: Any, **more: Any) -> None:
        """Stop."""
        self.seconds.append(self._clock() - self._begun)


class Rows(Dataset[dict[str, Tensor]]):
    """Windows as the Trainer takes them."""

    def __init__(self, ids: Tensor) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"input_ids": self._ids[number], "labels": self._ids[number]}


def batch_of(recipe: Recipe, length: int) -> tuple[Tensor, Tensor]:
    """Return ids [W, N+1] of made-up documents, and that all count."""
    assert isinstance(recipe.architecture, BaseArchitecture)
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(
        1, recipe.architecture.vocabulary_size, (recipe.batch_tokens // length, length + 1), generator=random
    )
    ids[:, ::DOCUMENT_TOKENS] = BEGIN
    return ids, torch.ones_like(ids, dtype=torch.bool)


def step_flops(recipe: Recipe, length: int) -> float:
    """Return what a step of our model needs, forth and back."""
    base, pack = recipe.architecture, recipe.pack
    assert isinstance(base, BaseArchitecture)
    assert isinstance(pack, PackArchitecture)
    networks = nn.ModuleList([Base(base), Pack(pack)])
    matrices = sum(p.numel() for name, p in networks.named_parameters() if p.ndim == 2 and "embedding" not in name)
    matrices += base.vocabulary_size * base.blocks.hidden_size * base.tied_embedding
    layers = base.understanding_layers + pack.layers + base.fusion_layers
    attention = layers * 6 * base.blocks.heads * base.blocks.head_size * length
    return float(recipe.batch_tokens * (6 * matrices + attention))


def matmul_rate(clock: Callable[[], float]) -> float:
    """Return the FLOP/s of a product of bf16 matrices, the best of some."""
    one, other = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(20):
        begun = clock()
        one @ other
        best = min(best, clock() - begun)
    return 2 * 2048**3 / best


if __name__ == "__main__":
    main()
