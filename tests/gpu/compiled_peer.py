"""The same networks through `torch.compile`, with CUDA graphs where there is a GPU: a decode step of fixed shapes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from modularbase_core.train.ship import load_shipped


class Still:
    """A place for `graph` blocks whose caches keep their shape: keys and values of `batch` sequences at one position.

    position: [1] int64, where the new row goes; rows beyond it are masked.
    """

    def __init__(self, position: Tensor, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        self._position = position
        self._caches = torch.zeros((layers, 2, *shape), dtype=dtype, device=position.device)

    def attend(self, qkv: Tensor, rotary: Tensor, layer: int, heads: int, kv_heads: int) -> Tensor:
        """Return [B, H*D] for one new row of each sequence."""
        size, half = qkv.shape[-1] // (heads + 2 * kv_heads), qkv.shape[-1] // (heads + 2 * kv_heads) // 2
        x = qkv.view(qkv.shape[0], heads + 2 * kv_heads, 1, size)
        both = rotary.transpose(1, 2).reshape(-1, size)[self._position].to(qkv.dtype)
        cos, sin, turned = both[:, :half], both[:, half:], x[:, : heads + kv_heads]
        low, high = turned[..., :half], turned[..., half:]
        rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
        keys, values = self._caches[layer, 0], self._caches[layer, 1]
        keys.index_copy_(2, self._position, rotated[:, heads:])
        values.index_copy_(2, self._position, x[:, heads + kv_heads :])
        seen = torch.arange(keys.shape[2], device=qkv.device) <= self._position
        out = functional.scaled_dot_product_attention(
            rotated[:, :heads], keys, values, attn_mask=seen[None, None, None], enable_gqa=True
        )
        return out.reshape(qkv.shape[0], heads * size)

    def mixture(self, *tensors: Tensor) -> Tensor:
        """Refuse: what is measured is dense."""
        raise AssertionError("no mixture in the compiled peer")


class CompiledPeer:
    """Base and one pack, one token of every sequence a call; what it has seen before is left to be random."""

    def __init__(self, base: Path, pack: Path, batch: int, longest: int, device: str, dtype: torch.dtype) -> None:
        self._base, self._pack = (load_shipped(path, "float16").to(device, dtype) for path in (base, pack))
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._rows = torch.arange(batch, device=device)
        self._tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        stacks = (self._base.understanding, self._pack.experts, self._base.fusion)
        self._places = [self._place(stack, batch, longest, dtype) for stack in stacks]
        mode = "reduce-overhead" if device == "cuda" else "default"
        self._step = torch.compile(self._eager, mode=mode, fullgraph=True)

    @torch.no_grad()
    def feed(self, token: int, position: int) -> Tensor:
        """Take a token in at a position; return the logits [B, V] on the CPU, as sampling there would want them."""
        self._tokens.fill_(token)
        self._position.fill_(position)
        return self._step(self._tokens).float().cpu()

    def _eager(self, tokens: Tensor) -> Tensor:
        understanding, expert, fusion = self._places
        output = self._pack(self._base.understand(tokens, understanding), expert)
        logits: Tensor = self._base.fuse(output, fusion, self._rows)
        if self._pack.head is not None:
            logits = self._pack.head(output, self._rows, logits, logits.new_ones(len(self._rows)))
        return logits

    def _place(self, stack: torch.nn.Module, batch: int, longest: int, dtype: torch.dtype) -> Still:
        shape = (batch, stack.layers[0].kv_heads, longest, stack.rotary.shape[1])
        return Still(self._position, len(stack.layers), shape, dtype)
