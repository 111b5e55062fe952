"""What is compiled: the programs of each architecture, with the shapes they are exported at.

A program is a torch module over tensors only (weights apart), ready for `torch.export`. Its inputs, their
dtypes and symbolic dimensions are told here once; `device` reads them back from the artefact's metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from modularbase_core.graph import ops
from modularbase_core.graph.networks import Base, Pack, Router, build_network
from modularbase_core.graph.places import Asking, Pages
from modularbase_core.graph.quantised import quantise_network
from modularbase_core.sdk.architecture import (
    PAGE_TOKENS,
    Architecture,
    BaseArchitecture,
    PackArchitecture,
)

FLOAT: Final = "float"  # the artefact's working dtype: float32 on CPU, float16 on CUDA
INT: Final = "int32"


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a program: a letter stands for a symbolic dimension, `updated` for a result in place."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    updated: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A module to export. Results: the computed tensor first, then every `updated` input in order."""

    name: str
    module: nn.Module
    inputs: tuple[Input, ...]


def programs(architecture: Architecture, precision: str = "float32") -> tuple[Program, ...]:
    """List the programs of an architecture, weights held in `precision`; only their names and shapes matter."""
    network = quantise_network(build_network(architecture), precision)
    if isinstance(network, Base) and isinstance(architecture, BaseArchitecture):
        size, blocks = architecture.blocks.hidden_size, architecture.blocks
        hidden_pages = Input("hidden_pages", FLOAT, ("P", PAGE_TOKENS, size), updated=True)
        understanding = _paged(architecture.understanding_layers, blocks.kv_heads, blocks.head_size)
        fusion = _paged(architecture.fusion_layers, blocks.kv_heads, blocks.head_size)
        rows = Input("rows", INT, ("R",))
        return (
            Program("understand", _Understand(network), (Input("tokens", INT, ("T",)), hidden_pages, *understanding)),
            Program("probe", _Probe(network), (Input("tokens", INT, ("T",)), *understanding)),
            Program("recall_hidden", _RecallHidden(), (_fixed(hidden_pages), Input("slots", INT, ("T",)))),
            Program("mix", _Mix(), (_rows("total", size), _rows("part", size), Input("weight", FLOAT, ("T",)))),
            Program("compare", _Compare(), (_rows("left", size), _rows("right", size))),
            Program("fuse", _Fuse(network), (_rows("mixed", size), rows, *fusion)),
        )
    if isinstance(network, Pack) and isinstance(architecture, PackArchitecture):
        blocks = architecture.blocks
        paged = _paged(architecture.layers, blocks.kv_heads, blocks.head_size)
        width = architecture.base_hidden_size
        run = Program("run", _RunPack(network), (_rows("hidden", width), *paged))
        if network.head is None:
            return (run,)
        logits = Input("logits", FLOAT, ("R", architecture.vocabulary_size))
        own = (_rows("output", width), Input("rows", INT, ("R",)), logits, Input("weight", FLOAT, ("R",)))
        return run, Program("delta", _Delta(network), own)
    assert isinstance(network, Router)
    assert not isinstance(architecture, (BaseArchitecture, PackArchitecture))
    message = (_rows("hidden", architecture.base_hidden_size), Input("tokens", INT, ("T",)))
    return (Program("route", network, (*message, Input("starts", INT, ("B",)), Input("lengths", INT, ("B",)))),)


class _Understand(nn.Module):
    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base

    def forward(
        self,
        tokens: Tensor,
        hidden_pages: Tensor,
        pages: Tensor,
        slots: Tensor,
        starts: Tensor,
        lengths: Tensor,
        context: Tensor,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        place = Pages(pages, slots, starts, lengths, context, visible)
        hidden = self.base.understand(tokens, place)
        return hidden, ops.append_hidden(hidden_pages, hidden, slots), place.pages


class _Probe(nn.Module):
    """The un-rotated queries [T, L * H * D] of the understanding layers, layer by layer; writes the same pages."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base

    def forward(
        self,
        tokens: Tensor,
        pages: Tensor,
        slots: Tensor,
        starts: Tensor,
        lengths: Tensor,
        context: Tensor,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        place = Asking(pages, slots, starts, lengths, context, visible)
        self.base.understand(tokens, place)
        return torch.cat(place.queries, 1), place.pages


class _RecallHidden(nn.Module):
    def forward(self, hidden_pages: Tensor, slots: Tensor) -> Tensor:
        return functional.embedding(slots, hidden_pages.flatten(0, 1))


class _Mix(nn.Module):
    def forward(self, total: Tensor, part: Tensor, weight: Tensor) -> Tensor:
        return total + part * weight[:, None]


class _Compare(nn.Module):
    """Inner products of rows, divided by their width; in float32, as squares of float16 may exceed it."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left.float() * right.float() / left.shape[-1]).sum(-1)  # one kernel: nothing follows the sum


class _Fuse(nn.Module):
    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base

    def forward(
        self,
        mixed: Tensor,
        rows: Tensor,
        pages: Tensor,
        slots: Tensor,
        starts: Tensor,
        lengths: Tensor,
        context: Tensor,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        place = Pages(pages, slots, starts, lengths, context, visible)
        return self.base.fuse(mixed, place, rows), place.pages


class _RunPack(nn.Module):
    def __init__(self, pack: Pack) -> None:
        super().__init__()
        self.pack = pack

    def forward(
        self,
        hidden: Tensor,
        pages: Tensor,
        slots: Tensor,
        starts: Tensor,
        lengths: Tensor,
        context: Tensor,
        visible: Tensor,
    ) -> tuple[Tensor, Tensor]:
        place = Pages(pages, slots, starts, lengths, context, visible)
        return self.pack(hidden, place), place.pages


class _Delta(nn.Module):
    def __init__(self, pack: Pack) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, output: Tensor, rows: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        assert self.pack.head is not None
        out: Tensor = self.pack.head(output, rows, logits, weight)
        return out


def _paged(layers: int, kv_heads: int, head_size: int) -> tuple[Input, ...]:
    return (
        Input("pages", FLOAT, ("P", layers, 2, kv_heads, PAGE_TOKENS * head_size), updated=True),
        Input("slots", INT, ("T",)),
        Input("starts", INT, ("B",)),
        Input("lengths", INT, ("B",)),
        Input("context", INT, ("B",)),
        Input("visible", INT, ("B", "M")),
    )


def _rows(name: str, width: int) -> Input:
    return Input(name, FLOAT, ("T", width))


def _fixed(value: Input) -> Input:
    return Input(value.name, value.dtype, value.shape)
