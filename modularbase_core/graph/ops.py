"""The operations that a kernel replaces: functional torch custom ops with their eager reference.

Each is `mutates_args=()` and returns the updated pages, so that it survives `torch.export`; the compiler
maps it to a kernel that writes in place. Reductions and rotations are in float32 whatever the dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from modularbase_core.sdk.architecture import PAGE_TOKENS


def rotate(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Rotate `x` [T, heads, D] to `positions` [T] of a `rotary_table`; float32 in, float32 out."""
    half = x.shape[-1] // 2
    both = table.transpose(1, 2).reshape(-1, x.shape[-1])[positions][:, None, :]
    cos, sin, low, high = both[..., :half], both[..., half:], x[..., :half], x[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


@torch.library.custom_op("modularbase::append_kv", mutates_args=())
def append_kv(pages: Tensor, qkv: Tensor, slots: Tensor, layer: int, heads: int) -> Tensor:
    """Write the un-rotated keys and values of `qkv` into `pages` at `slots`; return the pages.

    pages: [P, L, 2, K, 16*D]; a page of keys is [D, 16] (token innermost), of values [16, D].
    qkv: [T, (H+2K)*D]. slots: [T] int32, page*16 + offset, all different. layer: index into L. heads: H.
    """
    _, _, _, kv_heads, page_size = pages.shape
    size = page_size // PAGE_TOKENS
    out = pages.clone()
    page, offset = (slots // PAGE_TOKENS).long(), (slots % PAGE_TOKENS).long()
    _, key, value = torch.split(qkv.view(qkv.shape[0], -1, size), [heads, kv_heads, kv_heads], 1)
    torch.unflatten(out[:, layer, 0], -1, (size, PAGE_TOKENS))[page, :, :, offset] = key
    torch.unflatten(out[:, layer, 1], -1, (PAGE_TOKENS, size))[page, :, offset] = value
    return out


@append_kv.register_fake
def _(pages: Tensor, qkv: Tensor, slots: Tensor, layer: int, heads: int) -> Tensor:
    return torch.empty_like(pages)


@torch.library.custom_op("modularbase::attend", mutates_args=())
def attend(
    qkv: Tensor,
    pages: Tensor,
    rotary: Tensor,
    starts: Tensor,
    lengths: Tensor,
    context: Tensor,
    visible: Tensor,
    layer: int,
    heads: int,
) -> Tensor:
    """Causal grouped-query attention of new rows over each sequence's visible pages, RoPE at read time.

    qkv: [T, (H+2K)*D]; only the queries are read, the keys are in `pages` already (see `append_kv`).
    rotary: [N/16, D, 16] float32. Sequence b owns rows starts[b] .. starts[b]+lengths[b]; visible[b] [M] int32
    lists its pages in compact order; the keys in that list at positions 0..context[b]+i are seen by row i, whose
    own position is context[b]+i. Entries of `visible` past those positions are never read. Returns [T, H*D].
    """
    _, _, _, kv_heads, page_size = pages.shape
    size = page_size // PAGE_TOKENS
    query = qkv.view(qkv.shape[0], -1, size)[:, :heads].float()
    out = torch.zeros(qkv.shape[0], heads, size, dtype=qkv.dtype)
    for b in range(starts.shape[0]):
        first, count, before = int(starts[b]), int(lengths[b]), int(context[b])
        total = before + count
        listed = pages[visible[b, : -(-total // PAGE_TOKENS)].long(), layer].float()
        key = torch.unflatten(listed[:, 0], -1, (size, PAGE_TOKENS)).permute(0, 3, 1, 2).flatten(0, 1)[:total]
        value = torch.unflatten(listed[:, 1], -1, (PAGE_TOKENS, size)).permute(0, 2, 1, 3).flatten(0, 1)[:total]
        place = torch.arange(total)
        key = rotate(key, rotary, place).repeat_interleave(heads // kv_heads, 1)
        value = value.repeat_interleave(heads // kv_heads, 1)
        rotated = rotate(query[first : first + count], rotary, place[before:])
        score = torch.einsum("thd,nhd->htn", rotated, key) * size**-0.5
        score = score.masked_fill(place[None, :] > place[before:, None], -torch.inf)
        out[first : first + count] = torch.einsum("htn,nhd->thd", score.softmax(-1), value).to(qkv.dtype)
    return out.flatten(1)


@attend.register_fake
def _(
    qkv: Tensor,
    pages: Tensor,
    rotary: Tensor,
    starts: Tensor,
    lengths: Tensor,
    context: Tensor,
    visible: Tensor,
    layer: int,
    heads: int,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], heads * (pages.shape[4] // PAGE_TOKENS))


@torch.library.custom_op("modularbase::append_hidden", mutates_args=())
def append_hidden(pages: Tensor, hidden: Tensor, slots: Tensor) -> Tensor:
    """Write `hidden` [T, E] into `pages` [P, 16, E] at `slots` [T] int32; return the pages."""
    out = pages.clone()
    out.view(-1, pages.shape[-1])[slots.long()] = hidden
    return out


@append_hidden.register_fake
def _(pages: Tensor, hidden: Tensor, slots: Tensor) -> Tensor:
    return torch.empty_like(pages)


def activate(projected: Tensor, activation: str) -> Tensor:
    """Apply what stands between a feed-forward's two projections: [T, 2F] (gate, then up) or [T, F] to [T, F].

    swiglu, geglu: silu(gate) * up, gelu(gate) * up (Shazeer, 2020). gelu: no gate (Hendrycks and Gimpel, 2016); in
    its tanh form, as in GPT-2 and Gemma.
    """
    if activation == "gelu":
        return functional.gelu(projected, approximate="tanh")
    gate, up = projected.chunk(2, -1)
    return (functional.silu(gate) if activation == "swiglu" else functional.gelu(gate, approximate="tanh")) * up


def choose(logits: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Return the `chosen` experts of each token, ids [T, k] int32, and their gates [T, k], a softmax over them.

    logits: [T, X] float32. (Mixtral; of equal logits any may come first.)
    """
    score, ids = torch.topk(logits, chosen, dim=-1)
    return ids.to(torch.int32), score.softmax(-1)


def moe_reference(x: Tensor, ids: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """Sum over each token's experts of gate * expert; differentiable, no token is dropped.

    ids, gates: [T, k], see `choose`; for the others see `moe`. Rows are sorted by expert, so that each expert is two
    products of matrices. Permutations and a sum in the order of `ids` give the same bits each time, where adding rows
    by index would not.
    """
    chosen, flat = ids.shape[1], ids.flatten()
    order = flat.argsort(stable=True)
    counts: list[int] = flat.bincount(minlength=gate_up.shape[0]).tolist()
    rows = x[:, None].expand(-1, chosen, -1).reshape(len(flat), -1).index_select(0, order)
    parts = _per_expert(activate(_per_expert(rows, gate_up, counts), activation), down, counts)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    parts = parts.index_select(0, back).view(*ids.shape, -1)
    return (parts * gates[:, :, None].to(parts.dtype)).sum(1).to(x.dtype)


def _per_expert(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """Multiply the first counts[0] of `rows` by the first of `weights` [X, N, K], and so on: [sum(counts), N]."""
    split = zip(torch.split(rows, counts), weights.unbind(0), strict=True)
    return torch.cat([functional.linear(part, weight) for part, weight in split])


@torch.library.custom_op("modularbase::moe", mutates_args=())
def moe(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, chosen: int, activation: str) -> Tensor:
    """Choose experts of each token and run them.

    x: [T, E]; logits: [T, X] float32; gate_up: [X, 2F, E], or [X, F, E] where the activation has no gate; down:
    [X, E, F]; chosen: of a token; activation: see `activate`. Returns [T, E]. (Shazeer et al., 2017.)
    """
    return moe_reference(x, *choose(logits, chosen), gate_up, down, activation)


@moe.register_fake
def _(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, chosen: int, activation: str) -> Tensor:
    return torch.empty_like(x)
