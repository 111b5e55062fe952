import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.device.budget import HOT_PAGES, RESIDENT, SLOTS, WORKSPACE, Budget, BudgetPlan, mebibytes, plan
from modularbase_core.errors import BudgetError

MIB = 1 << 20
BYTES = st.integers(0, 1000)


def four_gigabytes(total_bytes: int = 4096 * MIB) -> BudgetPlan:
    return plan(
        total_bytes,
        resident={"base": 1000 * MIB, "router": 200 * MIB, "general_chat": 400 * MIB},
        slot_count=3,
        slot_bytes=384 * MIB,
        page_bytes=2 * MIB,
        minimum_pages=64,
        maximum_pages=256,
        workspace_bytes=300 * MIB,
    )


@given(BYTES, st.lists(st.tuples(st.sampled_from([RESIDENT, SLOTS, HOT_PAGES, WORKSPACE]), BYTES)))
def test_reservations_never_exceed_the_total(total: int, wishes: list[tuple[str, int]]) -> None:
    budget, granted = Budget(total), 0
    for part, size in wishes:
        if size <= total - granted:
            assert budget.reserve(part, "thing", size).size_bytes == size
            granted += size
        else:
            with pytest.raises(BudgetError):
                budget.reserve(part, "thing", size)
        assert sum(item.size_bytes for item in budget.reservations) == granted <= total
        assert budget.free_bytes == total - granted


@given(
    st.integers(0, 5000),
    st.dictionaries(st.text("abc", min_size=1), BYTES, max_size=3),
    st.integers(0, 4),
    BYTES,
    st.integers(1, 50),
    st.integers(0, 20),
    st.none() | st.integers(20, 60),
    BYTES,
)
def test_a_plan_fits_or_is_refused(
    total: int,
    resident: Mapping[str, int],
    slots: int,
    slot: int,
    page: int,
    minimum: int,
    maximum: int | None,
    workspace: int,
) -> None:
    needed = sum(resident.values()) + slots * slot + minimum * page + workspace

    def divide() -> BudgetPlan:
        return plan(
            total,
            resident=resident,
            slot_count=slots,
            slot_bytes=slot,
            page_bytes=page,
            minimum_pages=minimum,
            maximum_pages=maximum,
            workspace_bytes=workspace,
        )

    if needed > total:
        with pytest.raises(BudgetError):
            divide()
        return
    made = divide()
    assert made.planned_bytes == needed + (made.page_count - minimum) * page <= total
    assert made.page_count == maximum or total - made.planned_bytes < page  # nothing is left over unused
    assert minimum <= made.page_count <= (maximum or total)


def test_the_lines_name_every_part() -> None:
    made = four_gigabytes()
    assert str(made).splitlines() == [
        "resident weights: base          1000 MiB",
        "resident weights: router         200 MiB",
        "resident weights: general_chat   400 MiB",
        "slots: 3 x 384 MiB              1152 MiB",
        "hot pages: 256 pages             512 MiB",
        "workspace: kernels               300 MiB",
        "free                             532 MiB",
        "total                           4096 MiB",
    ]
    value = json.loads(json.dumps(made.to_dict()))
    assert value["planned_bytes"] + value["free_bytes"] == value["total_bytes"] == 4096 * MIB
    assert value["lines"][0] == {"part": "resident weights", "name": "base", "bytes": 1000 * MIB}
    assert value["pages"] == {"count": 256, "bytes": 2 * MIB}


def test_a_pack_too_large_for_a_slot_is_refused_before_it_is_loaded() -> None:
    made = four_gigabytes()
    made.admit("poetry", 384 * MIB)
    with pytest.raises(BudgetError) as caught:
        made.admit("python", 412 * MIB)
    assert str(caught.value) == (
        "pack 'python' needs 412 MiB but a slot holds 384 MiB; raise memory_bytes or use a smaller pack"
    )
    with pytest.raises(BudgetError, match="needs 402653185 bytes but a slot holds 402653184 bytes"):
        made.admit("python", 384 * MIB + 1)


def test_what_does_not_fit_is_named_with_what_is_free() -> None:
    with pytest.raises(BudgetError) as caught:
        four_gigabytes(1500 * MIB)
    assert str(caught.value) == (
        "general_chat (resident weights) needs 400 MiB but 300 MiB of 1500 MiB are free beside "
        "base 1000 MiB, router 200 MiB; raise the memory budget or choose smaller parts"
    )


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 MiB"), (MIB // 2, "0.5 MiB"), (412 * MIB, "412 MiB")])
def test_bytes_are_formatted_for_people(size: int, text: str) -> None:
    assert mebibytes(size) == text
