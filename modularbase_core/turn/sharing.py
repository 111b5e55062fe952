"""Sequences that begin alike: what one has understood and fused, others take over.

Decides what a route is called, so that fusion is shared by those alone whose packs say the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Sequence_
from hashlib import blake2b

from modularbase_core.context.beginning import Beginnings
from modularbase_core.turn.fusions import Shares
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Route


class Sharing:
    """The beginnings of a model's sequences. packs: what each pack's answers depend on, by id, such as a digest."""

    def __init__(self, beginnings: Beginnings, packs: Mapping[str, str], shares: Shares) -> None:
        self._beginnings, self._packs, self._shares = beginnings, packs, shares

    @property
    def held_pages(self) -> int:
        """Pages that are kept to be shared."""
        return self._beginnings.cache.page_count

    def adopt(self, sequence: Sequence, token_ids: Sequence_[int]) -> None:
        """Take over what is known of the first of `token_ids`, if the sequence is empty; the last one never is."""
        if not sequence.table.tokens:
            count = self._beginnings.adopt(sequence.table, token_ids)
            sequence.advance(token_ids[:count])
            sequence.beginning.shared = count

    def begin_turn(self, sequence: Sequence) -> None:
        """Before a route fuses: take over what others fused by it, and own what it will fuse. Raises BudgetError."""
        sequence.beginning.begin_turn(self._name(sequence.route), sequence.fused)
        if sequence.beginning.shared and not sequence.fused:
            sequence.fused = self._beginnings.claim(sequence.table, sequence.beginning)

    def keep(self, sequence: Sequence) -> None:
        """Hand on what is fused, before any of it falls out of sight."""
        if self._name(sequence.route) != sequence.beginning.route:
            sequence.beginning.close()  # a fusion failed in the middle of the turn: it was fused by two
        self._beginnings.keep(sequence.table, sequence.beginning, sequence.fused)

    def rewind(self, sequence: Sequence, tokens: int) -> None:
        """Take the tokens of a turn that failed back, from `tokens` on."""
        sequence.rewind(tokens)
        self._beginnings.rewound(sequence.table)

    def _name(self, route: Route) -> bytes:
        packs = [(pack.id, pack.weight, self._packs.get(pack.id)) for pack in route.packs]
        return digest(packs, self._shares.described if len(packs) > 1 else "")


def digest(*parts: object) -> bytes:
    """Return 16 bytes that tell what can be written as JSON from all else."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).digest()
