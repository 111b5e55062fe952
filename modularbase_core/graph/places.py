"""Where attention finds its keys: windows of whole documents (training) or pages (inference).

Blocks are written against either; a test holds the two to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from modularbase_core.graph import ops
from modularbase_core.graph.attention import attention
from modularbase_core.graph.routed import Routed, routed


@dataclass(slots=True)
class Windows:
    """Whole windows without a cache: T = windows * N rows, window by window.

    mask: [windows, 1, N, N] bool, true where a row may see a column (causal and same document), or None
    for plain causal attention.
    """

    count: int
    mask: Tensor | None = None

    def attend(self, qkv: Tensor, rotary: Tensor, layer: int, heads: int, kv_heads: int) -> Tensor:
        """Return [T, H*D] for `qkv` [T, (H+2K)*D]."""
        size = qkv.shape[-1] // (heads + 2 * kv_heads)
        x = qkv.view(self.count, -1, heads + 2 * kv_heads, size).transpose(1, 2)
        length = x.shape[2]
        half = size // 2
        both = rotary.transpose(1, 2).reshape(-1, size)[:length].to(qkv.dtype)
        cos, sin = both[:, :half], both[:, half:]
        low, high = x[:, : heads + kv_heads, :, :half], x[:, : heads + kv_heads, :, half:]
        rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
        out = attention(rotated[:, :heads], rotated[:, heads:], x[:, heads + kv_heads :], self.mask)
        return out.transpose(1, 2).reshape(qkv.shape[0], heads * size)

    def mixture(
        self, x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, chosen: int, activation: str
    ) -> tuple[Tensor, Routed]:
        """Choose and run experts differentiably; tell how tokens were spread."""
        ids, gates = ops.choose(logits, chosen)
        return ops.moe_reference(x, ids, gates, gate_up, down, activation), routed(logits, ids)


@dataclass(slots=True)
class Pages:
    """Ragged rows over paged keys and values; `pages` is replaced as layers append to it.

    pages: [P, L, 2, K, 16*D]; slots: [T]; starts, lengths, context: [B]; visible: [B, M]; all int32.
    See `ops.attend`.
    """

    pages: Tensor
    slots: Tensor
    starts: Tensor
    lengths: Tensor
    context: Tensor
    visible: Tensor

    def attend(self, qkv: Tensor, rotary: Tensor, layer: int, heads: int, kv_heads: int) -> Tensor:
        """Append the keys and values of `qkv`, then return [T, H*D]."""
        self.pages = ops.append_kv(self.pages, qkv, self.slots, layer, heads)
        out: Tensor = ops.attend(
            qkv, self.pages, rotary, self.starts, self.lengths, self.context, self.visible, layer, heads
        )
        return out

    def mixture(
        self, x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, chosen: int, activation: str
    ) -> tuple[Tensor, None]:
        """Choose and run experts through the op that a kernel replaces; how tokens were spread is of no concern."""
        return ops.moe(x, logits, gate_up, down, chosen, activation), None


@dataclass(slots=True)
class Asking(Pages):
    """Pages that keep what each layer asks for: `queries`, a layer's [T, H*D] un-rotated."""

    queries: list[Tensor] = field(default_factory=list)

    def attend(self, qkv: Tensor, rotary: Tensor, layer: int, heads: int, kv_heads: int) -> Tensor:
        """Attend as pages do, and keep the queries of `qkv` [T, (H+2K)*D]."""
        self.queries.append(qkv[:, : heads * (qkv.shape[1] // (heads + 2 * kv_heads))])
        # super() would name the class that slots=True replaced
        return Pages.attend(self, qkv, rotary, layer, heads, kv_heads)


Place = Windows | Pages
