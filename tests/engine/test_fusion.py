"""Several packs in one turn: against torch for each fusion, and bit for bit in any chunks and any company."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from eager import Eager
from feeding import difference, fed, new_sequence, random_tokens, shared

from modularbase_core.engine.request import Request
from modularbase_core.errors import ConfigError
from modularbase_core.host import Parts
from modularbase_core.sdk.fusion import Fusion
from modularbase_core.sdk.markers import hookimpl
from modularbase_core.turn.fuse import Part
from modularbase_core.turn.fusions import AUXILIARY_SHARE
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Routed, Token

WEIGHTS = {"python_code": 0.5, "law": 0.3, "general_chat": 0.2}
ROUTE = shared(**WEIGHTS)
LIMIT = 0.1
"""Random packs agree by chance alone: at this limit some tokens' outputs contradict and others' do not."""


@pytest.fixture(scope="module")
def parts(parts_of: Callable[..., Parts], four_packs: dict[str, Path]) -> Callable[[str, float], Parts]:
    wired: dict[tuple[str, float], Parts] = {}

    def of(fusion: str, contradiction: float = -1.0) -> Parts:
        key = (fusion, contradiction)
        return wired.setdefault(key, parts_of(four_packs, fusion=fusion, contradiction=contradiction))

    return of


@pytest.fixture(scope="module")
def eager(four_packs: dict[str, Path]) -> Eager:
    return Eager(four_packs, "tiny-base")


def mean(weights: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    return weights.expand(outputs.shape[:2])


def attention(weights: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    unit, count = torch.nn.functional.normalize(outputs, dim=-1), len(weights)
    seen = (np.log2(count**2 - count) * unit @ unit.transpose(1, 2) + weights.log()).softmax(-1)
    return torch.einsum("p,tpq->tq", weights, seen)


def primary(weights: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    agreement = torch.nn.functional.cosine_similarity(outputs[:, :1], outputs, dim=-1).clamp(min=0)
    rest = 1 - weights[0]
    share = min(AUXILIARY_SHARE, float(rest)) / rest * weights * agreement
    share[:, 0] = 1 - share[:, 1:].sum(1)
    return share


REFERENCES = {"mean": mean, "attention": attention, "primary": primary}


def without_contradiction(shares: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def heard(weights: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        agreement = torch.nn.functional.cosine_similarity(outputs[:, :1], outputs, dim=-1)
        assert (agreement[:, 1:] < LIMIT).any()
        assert (agreement[:, 1:] > LIMIT).any()
        share = shares(weights, outputs) * (agreement >= LIMIT)
        share[:, 0] += 1 - share.sum(1)
        return share

    return heard


@pytest.mark.parametrize("fusion", sorted(REFERENCES))
def test_several_packs_give_the_logits_of_torch(parts: Callable[..., Parts], eager: Eager, fusion: str) -> None:
    token_ids = random_tokens(60)
    got = fed(parts(fusion).engine(), new_sequence(parts(fusion)), token_ids, ROUTE, [41, 17, 1, 1])
    wanted = eager.blended(token_ids, WEIGHTS, REFERENCES[fusion])[-1]
    assert difference(got, wanted) <= 1e-5


@pytest.mark.parametrize("fusion", sorted(REFERENCES))
def test_packs_that_contradict_the_leader_are_left_out_as_in_torch(
    parts: Callable[..., Parts], eager: Eager, fusion: str
) -> None:
    token_ids = random_tokens(60)
    got = fed(parts(fusion, LIMIT).engine(), new_sequence(parts(fusion, LIMIT)), token_ids, ROUTE, [41, 17, 1, 1])
    wanted = eager.blended(token_ids, WEIGHTS, without_contradiction(REFERENCES[fusion]))[-1]
    assert difference(got, wanted) <= 1e-5


@pytest.mark.parametrize("fusion", sorted(REFERENCES))
def test_chunked_whole_and_decode_agree_to_the_bit(parts: Callable[..., Parts], fusion: str) -> None:
    token_ids = random_tokens(200)
    chosen = parts(fusion, LIMIT)
    ends = [
        fed(chosen.engine(prefill_rows=rows), new_sequence(chosen), token_ids, ROUTE, pieces)
        for rows, pieces in ((256, [200]), (7, [100, 3, 97]), (256, [33] + [1] * 167))
    ]
    for other in ends[1:]:
        assert np.array_equal(other, ends[0])


@pytest.mark.parametrize("fusion", sorted(REFERENCES))
def test_company_changes_no_token_and_no_bit_of_several_packs(parts: Callable[..., Parts], fusion: str) -> None:
    chosen = parts(fusion, LIMIT)
    engine = chosen.engine()
    routes = [("python_code", "general_chat"), ("general_chat", "python_code"), ("python_code",)]

    def request(number: int) -> Request:
        return Request(
            sequence=new_sequence(chosen),
            token_ids=random_tokens(9 + 5 * number, number),
            question=(0, 5),
            sampling=SamplingConfig(max_tokens=6 + number, seed=number, logprobs=0),
            packs=routes[number % 3],
        )

    alone = [engine.run_all([request(number)])[0] for number in range(6)]
    together = engine.run_all([request(number) for number in range(6)])
    for one, other in zip(alone, together, strict=True):
        assert [(t.token_id, t.logprob) for t in one if isinstance(t, Token)] == [
            (t.token_id, t.logprob) for t in other if isinstance(t, Token)
        ]


@pytest.mark.parametrize("fusion", sorted(REFERENCES))
def test_a_single_pack_passes_every_fusion_to_the_bit(parts: Callable[..., Parts], fusion: str) -> None:
    token_ids = random_tokens(40)
    got = fed(parts(fusion, LIMIT).engine(), new_sequence(parts(fusion, LIMIT)), token_ids, "law", [20, 19, 1])
    plain = fed(parts("mean").engine(), new_sequence(parts("mean")), token_ids, "law", [20, 19, 1])
    assert np.array_equal(got, plain)
    output = parts(fusion).device.tensor((1, 64))
    assert parts(fusion).engine().decoding._fusion.blend([Part(None, output, 1.0)])[0] is output


def test_the_mean_makes_no_comparison_where_contradiction_is_off(
    parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, compared in ((-1.0, False), (LIMIT, True)):
        engine, calls = parts("mean", limit).engine(), []
        fusion = engine.decoding._fusion
        compare = fusion._compare
        monkeypatch.setattr(fusion, "_compare", lambda *pair, c=compare, n=calls: n.append(1) or c(*pair))
        fed(engine, new_sequence(parts("mean", limit)), random_tokens(20), ROUTE, [20])
        assert bool(calls) is compared


class Odd:
    """A plugin with two fusions: one that lets the last pack answer alone, one that fails at a token."""

    @hookimpl
    def modularbase_fusions(self) -> list[Fusion]:
        return [Fusion("last", lambda weights, gram: np.eye(len(weights))[-1]), Fusion("bad", self.fail)]

    def fail(self, weights: np.ndarray, gram: np.ndarray) -> np.ndarray:
        raise KeyError("no such weight")


def test_a_plugins_fusion_is_used_by_its_name(parts_of: Callable[..., Parts], four_packs: dict[str, Path]) -> None:
    last = parts_of(four_packs, Odd(), fusion="last", contradiction=-1.0)
    token_ids = random_tokens(40)
    got = fed(last.engine(), new_sequence(last), token_ids, shared(python_code=0.6, law=0.4), [40])
    assert difference(got, fed(last.engine(), new_sequence(last), token_ids, "law", [40])) <= 1e-6


def test_a_plugins_fusion_that_fails_is_told_and_the_turn_ends_well(
    parts_of: Callable[..., Parts], four_packs: dict[str, Path]
) -> None:
    bad = parts_of(four_packs, Odd(), fusion="bad")
    request = Request(
        sequence=new_sequence(bad),
        token_ids=random_tokens(9),
        question=(0, 5),
        sampling=SamplingConfig(temperature=0, max_tokens=4),
        packs=("python_code", "law"),
    )
    routed, *_, finished = bad.engine().run_all([request])[0]
    assert isinstance(routed, Routed)
    assert routed.notes == ("fusion 'bad' failed (KeyError: 'no such weight'); packs are blended by their mean",)
    assert finished.reason == "length"


def test_a_fusion_that_nobody_offers_is_refused_by_name(
    parts_of: Callable[..., Parts], four_packs: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=r"fusion is 'primry'.*did you mean 'primary'.*mean, attention or primary"):
        parts_of(four_packs, fusion="primry")
