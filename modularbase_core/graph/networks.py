"""Base, pack and router: the three networks of ModularBase.

Understanding ends at `hidden`, the adapter boundary; nothing below it depends on a pack.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from modularbase_core.graph.blocks import Stack
from modularbase_core.graph.places import Place
from modularbase_core.graph.quantised import QuantisedEmbedding
from modularbase_core.sdk.architecture import (
    Architecture,
    BaseArchitecture,
    PackArchitecture,
    RouterArchitecture,
)


class Base(nn.Module):
    """Embedding, understanding layers, fusion layers and head."""

    def __init__(self, architecture: BaseArchitecture) -> None:
        super().__init__()
        a, size = architecture, architecture.blocks.hidden_size
        self.embedding = nn.Embedding(a.vocabulary_size, size)
        self.understanding = Stack(a.blocks, a.understanding_layers, a.window.trained_tokens)
        self.fusion = Stack(a.blocks, a.fusion_layers, a.window.trained_tokens)
        self.norm = nn.RMSNorm(size, eps=a.blocks.norm_epsilon)
        self.head = None if a.tied_embedding else nn.Linear(size, a.vocabulary_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def understand(self, tokens: Tensor, place: Place) -> Tensor:
        """Return hidden states [T, E] of `tokens` [T]."""
        hidden: Tensor = self.understanding(self.embedding(tokens), place)
        return hidden

    def features(self, mixed: Tensor, place: Place, rows: Tensor) -> Tensor:
        """Return what the head reads, [R, E], for `rows` [R] of the packs' blended output `mixed` [T, E]."""
        out: Tensor = self.norm(functional.embedding(rows, self.fusion(mixed, place)))
        return out

    def head_weight(self) -> Tensor:
        """Return the head's matrix [V, E]: the embedding's where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def fuse(self, mixed: Tensor, place: Place, rows: Tensor) -> Tensor:
        """Return logits [R, V] for `rows` [R] of the packs' blended output `mixed` [T, E]."""
        features = self.features(mixed, place, rows)
        if isinstance(self.embedding, QuantisedEmbedding) and self.head is None:
            return self.embedding.linear(features)
        return functional.linear(features, self.embedding.weight) if self.head is None else self.head(features)


class HeadDelta(nn.Module):
    """What a pack adds to the logits, from its own output: up(down(norm(output))), of low rank; nothing at first.

    As LoRA (Hu et al., 2021) does it, beside the frozen head.
    """

    def __init__(self, width: int, rank: int, vocabulary_size: int, epsilon: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=epsilon)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, vocabulary_size, bias=False)
        nn.init.normal_(self.down.weight, std=width**-0.5)
        nn.init.zeros_(self.up.weight)

    def features(self, output: Tensor, rows: Tensor) -> Tensor:
        """Return what `up` reads, [R, rank], for `rows` [R] of the pack's output [T, E]."""
        out: Tensor = self.down(self.norm(functional.embedding(rows, output)))
        return out

    def forward(self, output: Tensor, rows: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        """Return `logits` [R, V] with what the pack adds at `rows` [R], by its `weight` [R] in the blend."""
        out: Tensor = logits + self.up(self.features(output, rows) * weight[:, None])
        return out


class Pack(nn.Module):
    """Input adapter, expert layers, output adapter. Adapters start as the identity where widths agree.

    head: what it adds to the logits, None where it adds nothing.
    """

    def __init__(self, architecture: PackArchitecture) -> None:
        super().__init__()
        a, size = architecture, architecture.blocks.hidden_size
        self.input_adapter = nn.Linear(a.base_hidden_size, size, bias=False)
        self.experts = Stack(a.blocks, a.layers, a.window.trained_tokens)
        self.output_adapter = nn.Linear(size, a.base_hidden_size, bias=False)
        for adapter in (self.input_adapter, self.output_adapter):
            nn.init.eye_(adapter.weight)
        own = (a.base_hidden_size, a.head_rank, a.vocabulary_size, a.blocks.norm_epsilon)
        self.head = HeadDelta(*own) if a.head_rank else None

    def forward(self, hidden: Tensor, place: Place) -> Tensor:
        """Map the base's hidden states [T, E] to this pack's output [T, E]."""
        out: Tensor = self.output_adapter(self.experts(self.input_adapter(hidden), place))
        return out


class Router(nn.Module):
    """Pool a message's hidden states into a unit query, to be compared with the packs' keys."""

    def __init__(self, architecture: RouterArchitecture) -> None:
        super().__init__()
        a = architecture
        self.heads = a.heads
        self.norm = nn.RMSNorm(a.base_hidden_size, eps=1e-6)
        self.inner = nn.Linear(a.base_hidden_size, a.width)
        self.lexicon = nn.Embedding(a.vocabulary_size, a.width) if a.vocabulary_size else None
        if self.lexicon is not None:
            nn.init.normal_(self.lexicon.weight, std=0.05)
        self.score = nn.Linear(a.width, a.heads)
        self.key = nn.Linear(a.width, a.key_size)

    def forward(self, hidden: Tensor, tokens: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """Return unit queries [B, key_size] for rows starts[b] .. starts[b]+lengths[b] of `hidden` [T, E].

        tokens: [T], the rows' tokens, read where there is a lexicon.
        Attention pooling (Lin et al., 2017): in each head a softmax over each message's own rows.
        """
        x = functional.silu(self.inner(self.norm(hidden)))
        # with a lexicon, hidden states say which words count, and the words themselves what they stand for
        meaning = x if self.lexicon is None else functional.silu(self.lexicon(tokens))
        row = torch.arange(hidden.shape[0], device=hidden.device, dtype=starts.dtype)[None, :]
        own = (row >= starts[:, None]) & (row < (starts + lengths)[:, None])
        # scores are squashed to +-8, so exp needs no running maximum; [H, B, T]
        score = torch.exp(8.0 * torch.tanh(self.score(x) / 8.0)).transpose(0, 1)
        weight = score[:, None, :] * own.to(x.dtype)[None]
        parts = meaning.view(x.shape[0], self.heads, -1).transpose(0, 1)
        pooled = torch.matmul(weight, parts) / weight.sum(2, keepdim=True)
        key = self.key(pooled.transpose(0, 1).flatten(1))
        out: Tensor = key * torch.rsqrt((key * key).sum(1, keepdim=True) + 1e-12)
        return out


def build_network(architecture: Architecture) -> nn.Module:
    """Make the network of an architecture, randomly initialised."""
    if isinstance(architecture, BaseArchitecture):
        return Base(architecture)
    if isinstance(architecture, PackArchitecture):
        return Pack(architecture)
    return Router(architecture)
