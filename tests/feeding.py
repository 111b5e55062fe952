"""Tokens through an engine's own stages: in pieces, under any packs, with the logits that come out."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_

import numpy as np

from modularbase_core.context.page import PageTable
from modularbase_core.engine.scheduler import Engine
from modularbase_core.host import Parts
from modularbase_core.turn.route import force
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Route, RoutedPack


def new_sequence(parts: Parts) -> Sequence:
    """Begin an empty sequence."""
    return Sequence(PageTable(parts.base.window))


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Draw token ids that stand for text."""
    return np.random.default_rng(seed).integers(5, 8192, count).tolist()


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def shared(**weights: float) -> Route:
    """Route to packs with these weights, the heaviest first."""
    return Route(tuple(RoutedPack(pack, weight, None) for pack, weight in weights.items()))


def fed(
    engine: Engine, sequence: Sequence, token_ids: list[int], packs: str | Route, pieces: Sequence_[int]
) -> np.ndarray:
    """Ingest tokens in pieces, a piece of one that follows others as a decode step; return the last logits."""
    sequence.route = force([packs]) if isinstance(packs, str) else packs
    done, logits = 0, np.empty(0)
    with engine.slots.hold(sequence.route.ids) as slots:
        placed = {slot.pack_id: slot.content for slot in slots}
        for piece in pieces:
            part = token_ids[done : done + piece]
            if piece == 1 and done:
                logits = engine.decoding.step([sequence], part, placed)[0]
            else:
                while part:
                    count = sequence.stretch(len(part))
                    engine.understanding.ingest(sequence, part[:count])
                    logits = engine.decoding.prefill(sequence, placed)
                    part = part[count:]
            done += piece
    return logits.copy()
