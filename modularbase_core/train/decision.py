"""Which pack new messages belong to: one that is there, or a new one.

Decides from the messages' queries and scores as chat would route them; training is `train.grow`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modularbase_core.device.weights import Background
from modularbase_core.errors import DataError
from modularbase_core.packs.keys import held_back, routing_keys, scores

COHERENT: Final = 0.5
"""Share of a domain's messages that keys made of the other half of them find, while they take next to none of others'.

Of the shipped data, cooking has 0.57 and help with commands 1.00; small talk 0.32, and a mixture of all 0.25.
"""
FEWEST: Final = 16
"""Messages that a new domain is judged by."""
OTHER: Final = 0.2
"""A share of messages that reach another pack, over which it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Where messages go. counts: how many reach each pack, the most first; general chat's reach none.

    pack: the one that is to learn them, None for a new one. coherence: of those that reach no pack, None where that
    was not asked. why: in one sentence.
    """

    counts: Mapping[str, int]
    pack: str | None
    coherence: float | None
    why: str
    notes: tuple[str, ...] = ()


def decide(
    queries: NDArray[np.float32],
    given: Sequence[Mapping[str, float]],
    background: Background,
    *,
    general: str,
    reach: float,
    threshold: float,
) -> Decision:
    """Decide by unit queries [n, key_size] of messages and their scores by pack.

    general: who answers what reaches no pack. reach: the score that a pack is chosen from. threshold: the share of
    messages that reach none, over which they are a new domain if they cohere. Raises DataError when they do not.
    """
    chosen = [max(one, key=lambda pack: one[pack]) if one else general for one in given]
    chosen = [pack if one.get(pack, 0.0) >= reach else general for pack, one in zip(chosen, given, strict=True)]
    counts = dict(Counter(chosen).most_common())
    missed = counts.get(general, 0) / len(chosen)
    told = f"{counts.get(general, 0)} of {len(chosen)} messages reach no pack"
    if missed <= threshold:
        pack = next(one for one in counts if one != general)
        others = [
            f"{count} of {len(chosen)} messages reach {one}; give its records by themselves, with --to {one}"
            for one, count in counts.items()
            if one not in (pack, general) and count > OTHER * len(chosen)
        ]
        why = f"{counts[pack]} of {len(chosen)} messages reach {pack} already"
        return Decision(counts=counts, pack=pack, coherence=None, why=why, notes=tuple(others))
    alone = queries[np.array([one == general for one in chosen])]
    found = coherence(alone, background, reach)
    if found is None or found < COHERENT:
        how = (
            f"they are fewer than {FEWEST}" if found is None else f"they cohere too little ({found:.2f} of {COHERENT})"
        )
        raise DataError(
            f"{told}, and {how} to make a domain of their own that routing finds; name the pack that is to learn them "
            "with --to, or a new one with --new"
        )
    why = f"{told}, over the threshold of {threshold:.0%}, and they cohere ({found:.2f}, at least {COHERENT})"
    return Decision(counts=counts, pack=None, coherence=found, why=why)


def coherence(queries: NDArray[np.float32], background: Background, reach: float) -> float | None:
    """Return the share of messages that keys made of the other half find, held back from the router's others.

    None for too few messages, and for a router without a background.
    """
    if len(queries) < FEWEST or not len(background.others):
        return None
    shuffled = queries[np.random.default_rng(0).permutation(len(queries))]
    found = []
    for one, other in ((shuffled[::2], shuffled[1::2]), (shuffled[1::2], shuffled[::2])):
        made = routing_keys(one, background.others, background.centres)
        made = held_back(made, background.others, background.centres, reach)
        own = scores(other, made["keys"], float(made["scale"][0]), float(made["bias"][0]), background.centres)
        found.append((own >= reach).mean())
    return float(np.mean(found))
