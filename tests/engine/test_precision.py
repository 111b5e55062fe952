"""The engine with weights in float16, int8 and int4: near torch that rounds alike, and the same bits however cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from eager import Eager
from feeding import difference, fed, new_sequence, random_tokens, shared

from modularbase_core.host import Parts

PRECISIONS = [("float16", "int8"), ("float16", "int4"), ("int8", "int8")]
ROUTE = shared(python_code=0.6, general_chat=0.4)


@pytest.fixture(scope="module", params=PRECISIONS, ids="-".join)
def precisions(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def parts(parts_of: Callable[..., Parts], tiny_packs: dict[str, Path], precisions: tuple[str, str]) -> Parts:
    return parts_of(tiny_packs, base_precision=precisions[0], pack_precision=precisions[1])


def test_logits_are_near_those_of_torch_in_that_precision(
    parts: Parts, tiny_packs: dict[str, Path], precisions: tuple[str, str]
) -> None:
    token_ids = random_tokens(60)
    got = fed(parts.engine(), new_sequence(parts), token_ids, "python_code", [41, 17, 1, 1])
    same = difference(got, Eager(tiny_packs, "tiny-base", *precisions).logits(token_ids, "python_code")[-1])
    exact = difference(got, Eager(tiny_packs, "tiny-base").logits(token_ids, "python_code")[-1])
    # a last bit may tip a value over to the next integer; what rounding weights costs is far more
    assert same < 1e-2
    assert same < exact < 0.5


def test_chunked_equals_whole_equals_decode_to_the_bit(parts: Parts) -> None:
    token_ids, engine = random_tokens(70), parts.engine()
    whole = fed(engine, new_sequence(parts), token_ids, ROUTE, [70])
    for pieces in ([1, 68, 1], [33, 37], [40, *[1] * 30]):
        assert np.array_equal(fed(engine, new_sequence(parts), token_ids, ROUTE, pieces), whole)
