"""How much of a pack's gain comes over to a base that changed, by what is aligned and from which start.

    python tests/bench/align.py DATA [--pack python_code] [--tokens 100000] [--records 80] [--continued CHECKPOINT]
        [--only noise ...] [--ways both ...]

Gain: log-perplexity of base + general chat less that of base + pack, on the pack's held-out records. Recovered: the
gain on the changed base, against its own general chat, as a share of the gain on the old one. The changes:

- noise: to every matrix, 0.3 of its own spread; general chat is left as it was;
- turned: the stream of the understanding layers by an orthogonal matrix, fusion as it was;
- turned whole: the stream of all layers, general chat turned with it (head and embedding no longer tied);
- continued: base and trunk trained on, from a checkpoint of such a run (--continued), else by this script for
  --continue-tokens at a high rate.

For each: the pack as it is; input adapter by least squares alone; by the gradient alone; by both; and both with the
output adapter too, of which least squares takes part in "turned whole" (general chats of both bases are there).
Prints a table, then one JSON line. The bar is 0.9 for what `modularbase train align` does.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from modularbase_core.device.weights import write_weights
from modularbase_core.graph.blocks import Stack
from modularbase_core.graph.networks import Base, Pack
from modularbase_core.packs.catalog import InstalledPack, discover
from modularbase_core.sdk.manifest import WEIGHTS_FILE, write_manifest
from modularbase_core.train.corpus import Record, read_records
from modularbase_core.train.perplexity import perplexity
from modularbase_core.train.recipe import Recipe, Source
from modularbase_core.train.run import run_recipe
from modularbase_core.train.saving import read_checkpoint
from modularbase_core.train.ship import load_shipped

HELD_OUT = {"python_code": ("python/mbpp_test", "python/test"), "legal": ("legal/test", "legal/zh_test")}
LEARNT = {
    "python_code": {"python/train": 0.5, "python/more_train": 0.05, "python/text_train": 0.2},
    "legal": {"legal/train": 0.4, "legal/zh_train": 0.2, "legal/text_train": 0.15},
}
GENERAL = {"chat/train": 0.25}
NOISE = 0.3
CONTINUED = ("base/en_more_train-00", "base/zh_docs_train", "chat/train")
FEW = {"batch_tokens": 1024, "windows": ((1.0, 256),), "warmup_steps": 5, "decay_share": 0.7, "compile": False}
ALIGNS = {
    "as it is": {"matrix_rate": 1e-9, "old_base": None, "tokens": 1024},
    "least squares": {"matrix_rate": 1e-9, "tokens": 1024},
    "gradient": {"old_base": None},
    "both": {},
    "both, output too": {"learns": ("input", "output")},
}
"""What each way of aligning says beside the common recipe."""

Changed = tuple[Base, Pack]


class Bench:
    """The shipped set, and the places where changed bases and runs lie."""

    def __init__(self, data: Path, pack: str, tokens: int, records: int, folder: Path) -> None:
        self.data, self.pack, self.tokens, self.folder = data, pack, tokens, folder
        self.catalog = discover()
        self.base, self.chat, self.own = (self._load(name) for name in ("nano-base", "general_chat", pack))
        self.tokenizer = Tokenizer.from_file(str(self._find("nano-base").pack.tokenizer))
        held = [record for name in HELD_OUT[pack] for record in read_records(data / f"{name}.jsonl.xz")]
        random.Random(0).shuffle(held)
        self.held: list[Record] = held[:records]

    def log_perplexity(self, base: Base, pack: Pack) -> float:
        """Return the mean negative log-likelihood per token of the held-out records."""
        return math.log(perplexity(base, pack, self.held, self.tokenizer))

    def align(self, changed: Changed, name: str, **said: object) -> Pack:
        """Align the pack to a changed base as a recipe does; return it."""
        parts = {**LEARNT[self.pack], **GENERAL}
        mix = tuple(Source(files=(f"{file}.jsonl.xz",), tokens=round(200_000 * part)) for file, part in parts.items())
        recipe = Recipe(
            **{
                **{"name": name.replace(" ", "_"), "stage": "align", "base": "base", "start": self.pack},
                **{"old_base": "nano-base", "mix": mix, "response_only": True, "tokens": self.tokens},
                **{"folder": self.folder / "set", "logs": ("none",), "matrix_rate": 0.01, "other_rate": 0.001},
                **FEW,
                **said,
            }
        )
        self._write("base", self._find("nano-base"), changed[0])
        self._write("chat", self._find("general_chat"), changed[1])
        checkpoint = run_recipe(
            recipe, data=self.data, runs=self.folder / "runs", quiet=True, installed=self._installed
        )
        pack = Pack(self._find(self.pack).manifest.network)
        state = read_checkpoint(checkpoint)["network"]
        pack.load_state_dict({key[5:]: value for key, value in state.items() if key.startswith("pack.")})
        checkpoint.unlink()
        return pack.eval().requires_grad_(False)

    def continued(self, checkpoint: Path | None, tokens: int) -> Changed:
        """Return base and trunk that were trained on."""
        if checkpoint is None:
            mix = tuple(Source(files=(f"{name}.jsonl.xz",), tokens=tokens // 3) for name in CONTINUED)
            recipe = Recipe(
                **{"name": "continued", "stage": "base", "base": "nano-base", "start": "general_chat", "mix": mix},
                **{"tokens": tokens, "matrix_rate": 0.02, "other_rate": 0.003, "logs": ("none",)},
                **FEW,
            )
            checkpoint = run_recipe(
                recipe, data=self.data, runs=self.folder / "runs", quiet=False, installed=self._installed
            )
        state = read_checkpoint(checkpoint)["network"]
        base = Base(self._find("nano-base").manifest.network)
        chat = Pack(self._find("general_chat").manifest.network)
        for network, prefix in ((base, "base."), (chat, "pack.")):
            network.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
        return base.eval().requires_grad_(False), chat.eval().requires_grad_(False)

    def _load(self, name: str) -> nn.Module:
        return load_shipped(self._find(name).pack.directory)

    def _find(self, name: str) -> InstalledPack:
        return self.catalog.find(name)

    def _installed(self):
        return self.catalog

    def _write(self, name: str, one: InstalledPack, network: nn.Module) -> None:
        directory = self.folder / "set" / name
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.numpy() for key, value in network.state_dict().items()}
        write_weights(directory / WEIGHTS_FILE, tensors, form="fp32")
        architecture = one.manifest.network
        if name == "base":
            architecture = replace(architecture, tied_embedding=network.head is None)
            (directory / "tokenizer").mkdir(exist_ok=True)
            (directory / "tokenizer/tokenizer.json").write_bytes(one.pack.tokenizer.read_bytes())
        other = {"layers": None, "hidden_size": None, "architecture_key": None, "files": {}}
        write_manifest(directory, replace(one.manifest, architecture=architecture, **other))


@torch.no_grad()
def noisy(base: Base, share: float) -> Base:
    """Return the base with noise on every matrix, by a share of its own spread."""
    random_ = torch.Generator().manual_seed(0)
    state = {key: value.clone() for key, value in base.state_dict().items()}
    for value in state.values():
        if value.ndim == 2:
            value += share * value.std() * torch.randn(value.shape, generator=random_)
    return _made(base, state, tied=True)


@torch.no_grad()
def turned(base: Base, chat: Pack, *, whole: bool) -> Changed:
    """Return base and general chat with the stream of understanding, or of all layers, turned."""
    size = base.embedding.embedding_dim
    turn = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]
    state = {key: value.clone() for key, value in base.state_dict().items()}
    state.setdefault("head.weight", state["embedding.weight"].clone())
    made = _made(base, state, tied=False)
    made.embedding.weight.copy_(made.embedding.weight @ turn)
    _turn(made.understanding, turn)
    other = Pack(_pack_shape(chat))
    other.load_state_dict(chat.state_dict())
    other.input_adapter.weight.copy_(other.input_adapter.weight @ turn)
    if whole:
        _turn(made.fusion, turn)
        made.head.weight.copy_(made.head.weight * made.norm.weight @ turn)
        made.norm.weight.fill_(1)
        other.output_adapter.weight.copy_(turn.T @ other.output_adapter.weight)
    return made, other.eval().requires_grad_(False)


def _turn(stack: Stack, turn: Tensor) -> None:
    """Let a stack read and write a turned stream; a norm's weights go into what reads it, where they commute."""
    for block in stack.layers:
        for norm, linear in ((block.attention_norm, block.qkv), (block.ffn_norm, block.ffn.gate_up)):
            linear.weight.copy_(linear.weight * norm.weight @ turn)
            norm.weight.fill_(1)
        for linear in (block.out, block.ffn.down):
            linear.weight.copy_(turn.T @ linear.weight)


def _made(base: Base, state: dict[str, Tensor], *, tied: bool) -> Base:
    shape = discover().find("nano-base").manifest.network
    made = Base(replace(shape, tied_embedding=tied))
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def _pack_shape(chat: Pack):
    return discover().find("general_chat").manifest.network


def main() -> None:
    """Measure all and print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pack", choices=list(HELD_OUT), default="python_code")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=80)
    parser.add_argument("--continued", type=Path)
    parser.add_argument("--continue-tokens", type=int, default=400_000)
    parser.add_argument("--ways", nargs="*", default=list(ALIGNS))
    parser.add_argument("--only", nargs="*", default=["noise", "turned", "turned whole", "continued"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.data, options.pack, options.tokens, options.records, Path(folder))
        without, own = bench.log_perplexity(bench.base, bench.chat), bench.log_perplexity(bench.base, bench.own)
        print(f"old base: general chat {without:.3f}, pack {own:.3f}, gain {without - own:.3f}", flush=True)
        changes: dict[str, Callable[[], Changed]] = {
            "noise": lambda: (noisy(bench.base, NOISE), bench.chat),
            "turned": lambda: turned(bench.base, bench.chat, whole=False),
            "turned whole": lambda: turned(bench.base, bench.chat, whole=True),
            "continued": lambda: bench.continued(options.continued, options.continue_tokens),
        }
        figures: dict[str, dict[str, float]] = {}
        for name in options.only:
            changed = changes[name]()
            chat = bench.log_perplexity(*changed)
            print(f"{name}: general chat {chat:.3f}", flush=True)
            figures[name] = {"general chat": chat}
            for how in options.ways:
                begun = time.monotonic()
                value = bench.log_perplexity(changed[0], bench.align(changed, f"{name}-{how}", **ALIGNS[how]))
                recovered = (chat - value) / (without - own)
                figures[name][how] = recovered
                seconds = time.monotonic() - begun
                print(f"  {how:<18}{value:>8.3f}  recovered {recovered:>6.3f}  {seconds:>4.0f} s", flush=True)
    print(json.dumps({"gain": without - own, **figures}))


if __name__ == "__main__":
    main()
