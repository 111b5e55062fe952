"""Where attention finds its keys: windows of whole documents (training) or pages (inference).

Blocks are written against either; a test holds the two to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modularbase_core.graph import ops


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
        key = rotated[:, heads:].repeat_interleave(heads // kv_heads, 1)
        value = x[:, heads + kv_heads :].repeat_interleave(heads // kv_heads, 1)
        out = functional.scaled_dot_product_attention(
            rotated[:, :heads], key, value, attn_mask=self.mask, is_causal=self.mask is None
        )
        return out.transpose(1, 2).reshape(qkv.shape[0], heads * size)

    def mixture(self, x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """Run experts differentiably."""
        return ops.moe_reference(x, ids, gates, gate_up, down)


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

    def mixture(self, x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """Run experts through the op that a kernel replaces."""
        out: Tensor = ops.moe(x, ids, gates, gate_up, down)
        return out


Place = Windows | Pages
