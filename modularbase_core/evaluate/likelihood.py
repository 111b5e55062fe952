"""How likely records are under each row's packs: the torch networks, and one reading of them for all rows.

The networks are `train.perplexity`'s, loaded when they are asked for; packs are blended as in a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modularbase_core.errors import TORCH_REMEDY, ModularBaseError
from modularbase_core.evaluate.selection import Selection
from modularbase_core.packs.resolve import Lineup, check_fetched
from modularbase_core.sdk.architecture import BaseArchitecture
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.train.readers.record import Record
from modularbase_core.turn.stages import Route

if TYPE_CHECKING:
    from modularbase_core.train.perplexity import Likelihood, Scorer, Shares

Done = Callable[[int], None]
"""Told how many records were read now."""


def open_scorer(lineup: Lineup, pack_ids: Sequence[str], tokenizer: Tokenizer, shares: Shares) -> Scorer:
    """Load the base and some packs as torch networks; raises ModularBaseError without torch."""
    try:
        from modularbase_core.graph.networks import Base, Pack
        from modularbase_core.train.installed import load_network
        from modularbase_core.train.perplexity import Scorer
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise ModularBaseError(f"likelihoods need torch ({error}); {TORCH_REMEDY}") from error
    packs = {}
    for one in lineup.routable:
        if one.id in pack_ids:
            check_fetched(one)
            network = load_network(one.pack)
            assert isinstance(network, Pack)
            packs[one.id] = network
    base, architecture = load_network(lineup.base.pack), lineup.base.manifest.network
    assert isinstance(base, Base)
    assert isinstance(architecture, BaseArchitecture)
    return Scorer(
        base,
        packs,
        lambda record: encode(record, tokenizer),
        longest=architecture.window.trained_tokens,
        shares=shares,
        token_bytes=tokenizer.token_bytes,
    )


def encode(record: Record, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Return a record's ids by the chat template and where its likelihood counts.

    Of messages what the assistant says counts, of a text everything; what ends either is predicted too.
    """
    controls = tokenizer.controls
    if record.text is not None:
        body = [*tokenizer.encode(record.text), *controls.text_end]
        return [controls.border, *body], [False, *[True] * len(body)]
    speaks_first = record.messages[0]["role"] == "system"
    ids = [*controls.begin, *(() if speaks_first else controls.system)]
    learn = [False] * len(ids)
    for message in record.messages:
        role = message["role"]
        body = [*tokenizer.encode(message["content"]), *controls.closing[role]]
        ids += [*controls.opening[role], *body]
        learn += [*[False] * len(controls.opening[role]), *[role == "assistant"] * len(body)]
    return ids, learn


def score_rows(
    records: Sequence[Record],
    rows: Sequence[Selection],
    routes: Sequence[Route | None],
    scorer: Scorer,
    done: Done | None = None,
) -> list[list[Likelihood]]:
    """Return the likelihoods of each row's records; routes: a record's, for the rows in which the router chooses.

    Those that have the same packs in all rows are read together.
    """
    groups: dict[tuple[tuple[tuple[str, float], ...], ...], list[int]] = {}
    for number, route in enumerate(routes):
        blends = tuple(tuple(row.blend(route).items()) for row in rows)
        groups.setdefault(blends, []).append(number)
    out: list[dict[int, Likelihood]] = [{} for _ in rows]
    for blends, members in groups.items():
        distinct = list(dict.fromkeys(blends))
        scored = scorer.score([records[number] for number in members], [dict(one) for one in distinct], done)
        for row, blend in zip(out, blends, strict=True):
            row.update(zip(members, scored[distinct.index(blend)], strict=True))
    return [[row[number] for number in range(len(records))] for row in out]
