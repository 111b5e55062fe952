"""Checkpoints taken apart, and the logits of what came out."""

from __future__ import annotations

from pathlib import Path

import torch

from modularbase_core.graph.networks import Base, Pack
from modularbase_core.graph.places import Windows
from modularbase_core.train.pretrained.decompose import Wanted, decompose
from modularbase_core.train.ship import load_shipped


def taken_apart(checkpoint: Path, out: Path, **wanted: object) -> dict[str, Path]:
    """Take a checkpoint apart; return the pack directories by their names in the project."""
    settings = {"name": "tiny-qwen", "understanding_layers": 1, "fusion_layers": 1, **wanted}
    decompose(checkpoint, out, Wanted(**settings))  # type: ignore[arg-type]  # settings differ in type
    return {name: out / "modularbase_tiny_qwen" / name for name in ("base", "router", "general_chat")}


@torch.no_grad()
def logits_of(packs: dict[str, Path], token_ids: list[int]) -> torch.Tensor:
    """Return [T, V] of base and general chat."""
    base, chat = load_shipped(packs["base"]), load_shipped(packs["general_chat"])
    assert isinstance(base, Base)
    assert isinstance(chat, Pack)
    place = Windows(1)
    hidden = base.understand(torch.tensor(token_ids), place)
    return base.fuse(chat(hidden, place), place, torch.arange(len(token_ids)))
