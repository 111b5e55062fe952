"""Transformer blocks, Llama/Qwen2-shaped: RMSNorm, grouped-query attention with RoPE, dense or mixture feed-forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modularbase_core.graph.ops import activate
from modularbase_core.graph.places import Place
from modularbase_core.graph.rotary import rotary_table
from modularbase_core.graph.routed import Routed
from modularbase_core.sdk.architecture import Blocks


class FeedForward(nn.Module):
    """down(activate(gate_up(x))), gate and up in one projection; without a gate it holds up alone."""

    def __init__(self, shape: Blocks) -> None:
        super().__init__()
        self.activation = shape.activation
        self.gate_up = nn.Linear(shape.hidden_size, shape.gate_up_size, bias=False)
        self.down = nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """Map x [T, E] to [T, E]."""
        out: Tensor = self.down(activate(self.gate_up(x), self.activation))
        return out


class Mixture(nn.Module):
    """Top-k mixture of such experts; gates are a softmax over the chosen ones (Mixtral).

    routed: in training, what it did with the tokens of the last call. (Of the places that it may be kept in, this one
    is not copied when layers' weights are divided among processes.)
    """

    def __init__(self, shape: Blocks) -> None:
        super().__init__()
        self.chosen, self.activation = shape.experts_per_token, shape.activation
        self.routed: Routed | None = None
        self.router = nn.Linear(shape.hidden_size, shape.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(shape.experts, shape.gate_up_size, shape.hidden_size))
        self.down = nn.Parameter(torch.empty(shape.experts, shape.hidden_size, shape.ffn_size))

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """Map x [T, E] to [T, E]."""
        logits = self.router(x).float()
        out, self.routed = place.mixture(x, logits, self.gate_up, self.down, self.chosen, self.activation)
        return out


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, shape: Blocks) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.attention_norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.qkv = nn.Linear(shape.hidden_size, shape.qkv_size, bias=shape.qkv_bias)
        self.out = nn.Linear(shape.heads * shape.head_size, shape.hidden_size, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.hidden_size, eps=shape.norm_epsilon)
        self.ffn: nn.Module = Mixture(shape) if shape.experts else FeedForward(shape)

    def forward(self, x: Tensor, rotary: Tensor, place: Place, layer: int) -> Tensor:
        """Map x [T, E] to [T, E] as layer `layer` of its stack."""
        seen = place.attend(self.qkv(self.attention_norm(x)), rotary, layer, self.heads, self.kv_heads)
        x = x + self.out(seen)
        out: Tensor = x + self.ffn(self.ffn_norm(x), place)
        return out


class Stack(nn.Module):
    """Blocks in a row over one set of pages.

    recompute: keep only what enters each block and run it anew on the way back, where training lacks memory.
    """

    rotary: Tensor
    recompute: bool = False

    def __init__(self, shape: Blocks, layers: int, positions: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(shape) for _ in range(layers))
        table = torch.tensor(rotary_table(positions, shape.head_size, shape.rope_theta))
        self.register_buffer("rotary", table, persistent=False)
        for block in self.modules():
            if isinstance(block, nn.Linear):
                nn.init.normal_(block.weight, std=shape.hidden_size**-0.5)
                if block.bias is not None:
                    nn.init.zeros_(block.bias)
            elif isinstance(block, Mixture):
                nn.init.normal_(block.gate_up, std=shape.hidden_size**-0.5)
                nn.init.normal_(block.down, std=shape.ffn_size**-0.5 / (2 * layers) ** 0.5)
        for block in self.modules():
            if not isinstance(block, Block):
                continue
            # residual branches start small, so depth does not blow up the stream (GPT-2)
            nn.init.normal_(block.out.weight, std=(shape.heads * shape.head_size) ** -0.5 / (2 * layers) ** 0.5)
            if isinstance(block.ffn, FeedForward):
                nn.init.normal_(block.ffn.down.weight, std=shape.ffn_size**-0.5 / (2 * layers) ** 0.5)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """Map x [T, E] to [T, E]."""
        for layer, block in enumerate(self.layers):
            if self.recompute:
                x = checkpoint(block, x, self.rotary, place, layer, use_reentrant=False)
            else:
                x = block(x, self.rotary, place, layer)
        return x
