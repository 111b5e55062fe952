"""The eager peer: the same networks in torch, with SDPA over a KV cache that grows. Fair to time against."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from modularbase_core.train.ship import load_shipped


class Growing:
    """A place for `graph` blocks: rotated keys and values of `batch` equally long sequences in growing slices."""

    def __init__(self, batch: int, longest: int) -> None:
        self._batch, self._longest = batch, longest
        self._caches: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def attend(self, qkv: Tensor, rotary: Tensor, layer: int, heads: int, kv_heads: int) -> Tensor:
        """Return [T, H*D] for new rows, sequence by sequence, at positions `length` on."""
        size = qkv.shape[-1] // (heads + 2 * kv_heads)
        x = qkv.view(self._batch, -1, heads + 2 * kv_heads, size).transpose(1, 2)
        end = self.length + x.shape[2]
        both = rotary.transpose(1, 2).reshape(-1, size)[self.length : end].to(qkv.dtype)
        cos, sin, half = both[:, : size // 2], both[:, size // 2 :], size // 2
        low, high = x[:, : heads + kv_heads, :, :half], x[:, : heads + kv_heads, :, half:]
        rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
        if layer not in self._caches:
            shape = (self._batch, kv_heads, self._longest, size)
            self._caches[layer] = (qkv.new_empty(shape), qkv.new_empty(shape))
        keys, values = self._caches[layer]
        keys[:, :, self.length : end] = rotated[:, heads:]
        values[:, :, self.length : end] = x[:, heads + kv_heads :]
        out = functional.scaled_dot_product_attention(
            rotated[:, :heads],
            keys[:, :, :end],
            values[:, :, :end],
            is_causal=self.length == 0,
            attn_mask=None if self.length == 0 or x.shape[2] == 1 else _causal(x.shape[2], end, qkv.device),
            enable_gqa=True,
        )
        return out.transpose(1, 2).reshape(qkv.shape[0], heads * size)

    def mixture(self, *tensors: Tensor) -> Tensor:
        """Refuse: the shipped packs are dense."""
        raise AssertionError("no mixture in the eager peer")


class EagerModel:
    """Base and one pack with a growing cache: `feed` new tokens of every sequence, get the last rows' logits."""

    def __init__(
        self, base: Path, pack: Path, precision: str = "float32", device: str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        self._device = device
        self._base, self._pack = (load_shipped(path, precision).to(device, dtype) for path in (base, pack))

    def start(self, batch: int, longest: int) -> None:
        """Begin `batch` empty sequences."""
        self._batch = batch
        self._places = [Growing(batch, longest) for _ in range(3)]

    @torch.no_grad()
    def feed(self, token_ids: Tensor) -> Tensor:
        """Add token_ids [batch, n]; return logits [batch, V] of the last ones."""
        understanding, expert, fusion = self._places
        count = token_ids.shape[1]
        hidden = self._base.understand(token_ids.flatten().to(self._device), understanding)
        rows = torch.arange(1, self._batch + 1, device=self._device) * count - 1
        output = self._pack(hidden, expert)
        logits: Tensor = self._base.fuse(output, fusion, rows)
        if self._pack.head is not None:
            logits = self._pack.head(output, rows, logits, logits.new_ones(len(rows)))
        for place in self._places:
            place.length += count
        return logits

    def greedy(self, token_ids: list[int], count: int, end: int) -> tuple[list[int], list[Tensor]]:
        """Return at most `count` greedy tokens, up to `end`, and the logits that each was chosen from."""
        self.start(1, len(token_ids) + count + 1)
        said: list[int] = []
        logits = [self.feed(torch.tensor([token_ids]))[0]]
        while len(said) < count and int(logits[-1].argmax()) != end:
            said.append(int(logits[-1].argmax()))
            logits.append(self.feed(torch.tensor([[said[-1]]]))[0])
        return said, logits


def _causal(rows: int, end: int, device: torch.device) -> Tensor:
    return torch.ones(rows, end, dtype=torch.bool, device=device).tril(end - rows)
