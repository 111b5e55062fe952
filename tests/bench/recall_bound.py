"""What recall can be worth that is fixed when a block begins: perplexity in torch, with pages chosen by all their keys.

A window of 256 tokens on texts of 1,024, where full attention is valid: 16 sinks, recent tokens, a block of 64, and 64
more that differ: none; more recent ones; the 4 pages that the queries of the tokens before the block look at most; and
those that the block's own queries will, which nobody knows beforehand. Every layer of base and general chat chooses for
itself, from all keys without their positions: more than the engine can, whose pages come back for all layers at once.

    python tests/bench/recall_bound.py DATA [--texts 10]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiers import _text
from torch import Tensor
from torch.nn import functional

from modularbase_core.config import EngineConfig
from modularbase_core.graph.ops import rotate
from modularbase_core.graph.places import Windows
from modularbase_core.host import Parts
from modularbase_core.packs.catalog import discover
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.train.corpus import read_records
from modularbase_core.train.installed import load_network

TRAINED, BLOCK, SINKS, SCORED_FROM = 1024, 64, 16, 256
ALONE, FILLED = 112, 176  # recent tokens before a block
ASKING = 128  # tokens before a block whose queries choose


@dataclass(slots=True)
class Choosing(Windows):
    """A stack's keys and values, un-rotated, of which each block sees sinks, chosen pages and recent tokens.

    own: choose by the block's own queries. pages: how many to choose. start: the block's first token.
    """

    recent: int = TRAINED
    pages: int = 0
    own: bool = False
    start: int = 0
    layers: dict[int, Tensor] = field(default_factory=dict)  # [T, H + 2K, D] each

    def attend(self, qkv: Tensor, rotary: Tensor, layer: int, heads: int, kv_heads: int) -> Tensor:
        """Return [T, H*D] of a block, after those that came before."""
        x = qkv.view(qkv.shape[0], heads + 2 * kv_heads, -1)
        seen = torch.cat([self.layers[layer], x]) if layer in self.layers else x
        self.layers[layer] = seen
        first = max(0, self.start - self.recent) // PAGE_TOKENS * PAGE_TOKENS
        sinks = min(SINKS, first)
        chosen = self._choose(seen, sinks, first, heads, kv_heads)
        kept = torch.cat([torch.arange(sinks), chosen, torch.arange(first, len(seen))])
        query, key, value = seen[kept].split([heads, kv_heads, kv_heads], 1)
        place, rows, group = torch.arange(len(kept)), len(x), heads // kv_heads
        query, key = rotate(query, rotary, place)[-rows:], rotate(key, rotary, place)
        score = torch.einsum("thd,nhd->htn", query, key.repeat_interleave(group, 1)) * key.shape[-1] ** -0.5
        score = score.masked_fill(place > place[-rows:, None], -torch.inf)
        return torch.einsum("htn,nhd->thd", score.softmax(-1), value.repeat_interleave(group, 1)).flatten(1)

    def _choose(self, seen: Tensor, sinks: int, first: int, heads: int, kv_heads: int) -> Tensor:
        """Return the tokens of the pages between sinks and recent ones that get most attention."""
        count = min(self.pages, (first - sinks) // PAGE_TOKENS)
        if count == 0:
            return torch.zeros(0, dtype=torch.int64)
        asking = seen[self.start :] if self.own else seen[max(0, self.start - ASKING) : self.start]
        query = asking[:, :heads].reshape(len(asking), kv_heads, heads // kv_heads, -1)
        key = seen[sinks:first, heads : heads + kv_heads]
        share = (torch.einsum("tkgd,nkd->tkgn", query, key) * key.shape[-1] ** -0.5).softmax(-1).sum((0, 1, 2))
        best = share.view(-1, PAGE_TOKENS).sum(1).topk(count).indices.sort().values
        return (sinks + best[:, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS)).flatten()


WAYS = {
    "full attention": {},
    "the window alone": {"recent": ALONE},
    "more recent tokens": {"recent": FILLED},
    "pages that the tokens before look at": {"recent": ALONE, "pages": 4},
    "half of either": {"recent": (ALONE + FILLED) // 2, "pages": 2},
    "pages that the block itself looks at": {"recent": ALONE, "pages": 4, "own": True},
}


def main() -> None:
    """Measure and print the figures, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--texts", type=int, default=10)
    options = parser.parse_args()
    parts = Parts(EngineConfig(), discover(), None)
    networks = [load_network(one.pack) for one in (parts.lineup.base, parts.lineup.general_chat)]
    books = [one.text or "" for one in read_records(options.data / "long/books.jsonl.xz")]
    texts = [_text(parts, books, TRAINED, seed) for seed in range(options.texts)]
    found = {name: perplexity(networks, texts, way) for name, way in WAYS.items()}
    full, alone, *_ = found.values()
    for name, value in found.items():
        print(f"{name:<40} {value:8.2f}   closes {100 * (alone - value) / (alone - full):6.1f} %")
    print(json.dumps(found))


@torch.no_grad()
def perplexity(networks: list[torch.nn.Module], texts: list[list[int]], way: dict[str, int]) -> float:
    """Return that of all tokens after the first `SCORED_FROM`."""
    base, chat = networks
    total, count = 0.0, 0
    for text in texts:
        stacks = [Choosing(1, **way) for _ in range(3)]
        for start in range(0, TRAINED, BLOCK):
            ids = torch.tensor(text[start : start + BLOCK])
            for stack in stacks:
                stack.start = start
            hidden = chat(base.understand(ids, stacks[0]), stacks[1])
            if start >= SCORED_FROM:
                told = ids.new_tensor(text[start + 1 : start + BLOCK + 1])
                logits = base.fuse(hidden, stacks[2], torch.arange(len(ids)))[: len(told)]
                total += float(functional.cross_entropy(logits, told, reduction="sum"))
                count += len(told)
            else:
                base.fuse(hidden, stacks[2], torch.arange(1))
    return math.exp(total / count)


if __name__ == "__main__":
    main()
