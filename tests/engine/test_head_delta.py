"""A pack that adds to the logits: against torch, by its share, bit for bit in any chunks and company, and only when
it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eager import Eager
from feeding import difference, fed, new_sequence, random_tokens, shared
from tiny_packs import BASE, PACK, manifest, write_pack

from modularbase_core.device.layouts import planned_bytes
from modularbase_core.host import Parts
from modularbase_core.sdk.architecture import architecture_key
from modularbase_core.sdk.testing import check_pack
from modularbase_core.turn.route import force
from modularbase_core.turn.stages import Route

RANK = 32
SPEAKS = replace(PACK, head_rank=RANK, vocabulary_size=BASE.vocabulary_size)
ROUTE = shared(python_code=0.5, speaks=0.3, general_chat=0.2)


@pytest.fixture(scope="module")
def packs(tiny_packs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny set and `speaks`, whose own part of the head is as loud as the base's."""
    directory = tmp_path_factory.mktemp("speaks") / "speaks"
    return {**tiny_packs, "speaks": write_pack(directory, manifest("speaks", "domain", SPEAKS), 9)}


@pytest.fixture(scope="module")
def parts(parts_of: Callable[..., Parts], packs: dict[str, Path]) -> Parts:
    return parts_of(packs, contradiction=-1.0)


def mean(weights: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    return weights.expand(outputs.shape[:2])


def test_its_logits_are_those_of_torch(parts: Parts, packs: dict[str, Path]) -> None:
    token_ids, eager = random_tokens(60), Eager(packs, "tiny-base")
    got = fed(parts.engine(), new_sequence(parts), token_ids, "speaks", [41, 17, 1, 1])
    wanted = eager.logits(token_ids, "speaks")[-1]
    assert difference(got, wanted) <= 1e-5
    eager._packs["speaks"].head = None
    assert difference(wanted, eager.logits(token_ids, "speaks")[-1]) > 0.1


def test_among_others_it_adds_by_its_share(parts: Parts, packs: dict[str, Path]) -> None:
    token_ids = random_tokens(60)
    got = fed(parts.engine(), new_sequence(parts), token_ids, ROUTE, [41, 17, 1, 1])
    weights = {pack.id: pack.weight for pack in ROUTE.packs}
    assert difference(got, Eager(packs, "tiny-base").blended(token_ids, weights, mean)[-1]) <= 1e-5


@pytest.mark.parametrize("route", ["speaks", ROUTE], ids=["alone", "among others"])
def test_chunked_equals_whole_equals_decode_to_the_bit(parts: Parts, route: str | Route) -> None:
    token_ids, engine = random_tokens(70), parts.engine()
    whole = fed(engine, new_sequence(parts), token_ids, route, [70])
    for pieces in ([1, 68, 1], [33, 37], [40, *[1] * 30]):
        assert np.array_equal(fed(engine, new_sequence(parts), token_ids, route, pieces), whole)


def test_a_row_has_the_same_bits_in_any_company(parts: Parts) -> None:
    engine, names = parts.engine(), ("speaks", "python_code", "speaks", "general_chat")
    with engine.slots.hold(("speaks", "python_code", "general_chat")) as slots:
        placed = {slot.pack_id: slot.content for slot in slots}

        def begun() -> list:
            sequences = []
            for number, name in enumerate(names):
                sequences.append(new_sequence(parts))
                sequences[-1].route = force([name])
                engine.understanding.ingest(sequences[-1], random_tokens(20 + number, number))
                engine.decoding.prefill(sequences[-1], placed)
            return sequences

        together = engine.decoding.step(begun(), [7, 8, 9, 10], placed)
        alone = [
            engine.decoding.step([one], [token], placed)[0].copy()
            for one, token in zip(begun(), [7, 8, 9, 10], strict=True)
        ]
    assert np.array_equal(together, alone)


def test_a_pack_that_is_not_chosen_changes_no_bit(
    parts: Parts, parts_of: Callable[..., Parts], tiny_packs: dict[str, Path]
) -> None:
    without, token_ids = parts_of(tiny_packs, contradiction=-1.0), random_tokens(40)
    for route in ("python_code", shared(python_code=0.6, general_chat=0.4)):
        logits = [fed(one.engine(), new_sequence(one), token_ids, route, [20, 19, 1]) for one in (parts, without)]
        assert np.array_equal(*logits)


def test_its_bytes_are_planned(parts: Parts) -> None:
    plain, speaks = (planned_bytes(parts.executables[architecture_key(one)].meta) for one in (PACK, SPEAKS))
    assert speaks - plain == 4 * (64 + RANK * 64 + BASE.vocabulary_size * RANK)


def test_it_checks_and_is_refused_by_a_base_of_other_tokens(
    packs: dict[str, Path], tmp_path: Path, parts_of: Callable[..., Parts]
) -> None:
    check_pack(packs["speaks"])
    other = replace(PACK, head_rank=RANK, vocabulary_size=300)
    directory = write_pack(tmp_path / "other", manifest("other", "domain", other), 9)
    refused = parts_of({**packs, "other": directory}).lineup.refused["other"]
    assert "adds to the logits of 300 tokens, but tiny-base has 8192" in refused
