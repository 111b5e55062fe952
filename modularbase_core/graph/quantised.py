"""Layers whose weights are small integers with a scale for 32 of them, and which multiply by integers too.

Decides the arithmetic that every kernel repeats: rows become int8 by groups as well, a group's products are summed
exactly, so results do not depend on the order or the instructions of those sums. (Q8_0 of llama.cpp works alike.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modularbase_core.graph.blocks import Mixture
from modularbase_core.graph.ops import activate, choose
from modularbase_core.graph.places import Place
from modularbase_core.sdk.parameters import LEAST_MAXIMUM
from modularbase_core.sdk.parameters import QUANTISATION_GROUP as GROUP
from modularbase_core.sdk.precision import quantised_bits, quantised_names


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise x [T, K] by groups of 32: int8 values [T, K/32, 32] and their scales [T, K/32] float32."""
    groups = x.float().view(x.shape[0], -1, GROUP)
    scale = groups.abs().amax(-1).clamp(min=LEAST_MAXIMUM) * torch.tensor(1 / 127, dtype=torch.float32)
    return (groups * (1 / scale)[..., None]).round().to(torch.int8), scale


@torch.library.custom_op("modularbase::linear_groups", mutates_args=())
def linear_groups(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """Return x @ W^T (+ bias) with x and W by groups of 32.

    x: [T, K]; weight: [N, K] int8, of which `bits` are used (-128..127 or -8..7); scale: [N, K/32] float16; bias: [N].
    Returns [T, N] of x's dtype; sums over groups are in float32, in order.
    """
    rows, row_scale = quantise_rows(x)
    groups = weight.view(weight.shape[0], -1, GROUP)
    total = torch.zeros(x.shape[0], weight.shape[0])
    for g in range(groups.shape[1]):
        exact = rows[:, g].float() @ groups[:, g].float().T
        total += exact * (scale[:, g].float() * row_scale[:, g, None])
    return (total if bias is None else total + bias.float()).to(x.dtype)


@linear_groups.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("modularbase::embed_groups", mutates_args=())
def embed_groups(tokens: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return rows `tokens` [T] of a matrix by groups, see `linear_groups`, as float32 [T, K]."""
    rows, factors = weight[tokens.long()].float(), scale[tokens.long()].float()
    return (rows.view(*factors.shape, GROUP) * factors[..., None]).view(rows.shape)


@embed_groups.register_fake
def _(tokens: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    return torch.empty(tokens.shape[0], weight.shape[1], device=weight.device)


@torch.library.custom_op("modularbase::moe_groups", mutates_args=())
def moe_groups(
    x: Tensor,
    logits: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    chosen: int,
    activation: str,
    bits: int,
) -> Tensor:
    """Choose experts of each token and run them, see `ops.moe`, with matrices by groups, see `linear_groups`."""
    ids, gates = choose(logits, chosen)
    out = torch.zeros(x.shape[0], down.shape[1])
    for c in range(chosen):
        part = torch.zeros_like(out)
        for expert in sorted(set(ids[:, c].tolist())):
            rows = torch.nonzero(ids[:, c] == expert).flatten()
            projected = linear_groups(x[rows], gate_up[expert], gate_up_scale[expert], None, bits)
            part[rows] = linear_groups(
                activate(projected, activation), down[expert], down_scale[expert], None, bits
            ).float()
        out += gates[:, c, None] * part
    return out.to(x.dtype)


@moe_groups.register_fake
def _(
    x: Tensor,
    logits: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    chosen: int,
    activation: str,
    bits: int,
) -> Tensor:
    return torch.empty_like(x)


class QuantisedMixture(nn.Module):
    """A mixture of experts by groups; its router stays as it is. See `blocks.Mixture`."""

    def __init__(self, mixture: Mixture, bits: int) -> None:
        super().__init__()
        self.chosen, self.activation, self.bits, self.router = mixture.chosen, mixture.activation, bits, mixture.router
        for name in ("gate_up", "down"):
            *outer, inputs = getattr(mixture, name).shape
            setattr(self, name, _fixed(torch.zeros(*outer, inputs, dtype=torch.int8)))
            setattr(self, f"{name}_scale", _fixed(torch.zeros(*outer, inputs // GROUP, dtype=torch.float16)))

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """Map x [T, E] to [T, E]."""
        weights = (self.gate_up, self.gate_up_scale, self.down, self.down_scale)
        out: Tensor = moe_groups(x, self.router(x).float(), *weights, self.chosen, self.activation, self.bits)
        return out


class QuantisedLinear(nn.Module):
    """A linear layer by groups; zeros until `weight` and `scale` are filled."""

    bias: Tensor | None

    def __init__(self, outputs: int, inputs: int, bits: int, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.weight = _fixed(torch.zeros(outputs, inputs, dtype=torch.int8))
        self.scale = _fixed(torch.zeros(outputs, inputs // GROUP, dtype=torch.float16))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, K] to [T, N]."""
        out: Tensor = linear_groups(x, self.weight, self.scale, self.bias, self.bits)
        return out


class QuantisedEmbedding(QuantisedLinear):
    """An embedding by groups, which as a linear layer is also the head that is tied to it.

    dtype: of the rows, which no weight tells.
    """

    dtype = torch.float32

    def forward(self, tokens: Tensor) -> Tensor:
        """Return rows [T, K]."""
        out: Tensor = embed_groups(tokens, self.weight, self.scale, self.bits)
        return out if self.dtype == out.dtype else out.to(self.dtype)

    def linear(self, x: Tensor) -> Tensor:
        """Map x [T, K] to logits [T, N]."""
        return super().forward(x)


def quantise_network(network: nn.Module, precision: str) -> nn.Module:
    """Replace the layers of `network` whose matrices `precision` stores as integers; the values are to be filled in."""
    bits = quantised_bits(precision)
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    for name in quantised_names(shapes, precision):
        path = name.removesuffix(".weight")
        if path == name:  # a mixture's own parameter, which has no layer
            path = name.rpartition(".")[0]
            layer = network.get_submodule(path)
            if isinstance(layer, Mixture):
                network.set_submodule(path, QuantisedMixture(layer, bits))
            continue
        layer = network.get_submodule(path)
        assert isinstance(layer, (nn.Linear, nn.Embedding)), name
        outputs, inputs = layer.weight.shape
        new: QuantisedLinear
        if isinstance(layer, nn.Embedding):
            new = QuantisedEmbedding(outputs, inputs, bits)
        else:
            new = QuantisedLinear(outputs, inputs, bits, layer.bias)
        network.set_submodule(path, new)
    return network


def scale_name(name: str) -> str:
    """Return the state_dict name of the scales of the quantised parameter `name`."""
    return name.removesuffix("weight") + "scale" if name.endswith(".weight") else f"{name}_scale"


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
