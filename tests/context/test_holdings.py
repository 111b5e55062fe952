import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.context.codec import FORMS
from modularbase_core.context.holdings import Held, Holdings

pages = st.dictionaries(
    st.integers(0, 300),
    st.builds(Held, st.sampled_from(FORMS), st.integers(0, 16), st.floats(0, 1, width=32), st.booleans()),
    max_size=40,
)


@given(pages, st.lists(st.integers(0, 300), max_size=20), st.sets(st.sampled_from(FORMS), min_size=1))
def test_what_is_held_is_counted_and_ordered_as_a_dictionary_would(held: dict, gone: list[int], forms: set) -> None:
    holdings = Holdings()
    for index, one in held.items():
        holdings.hold(index, Held("int8", 3, 0.5, False))
        holdings.hold(index, one)
    for index in gone:
        holdings.forget(index)
        held.pop(index, None)
    assert len(holdings) == len(held)
    assert [index for index in range(310) if index in holdings] == sorted(held)
    for form in FORMS:
        alike = [one for one in held.values() if one.form == form]
        assert holdings.pages[form] == len(alike)
        assert holdings.tokens[form] == sum(one.token_count for one in alike)
    wanted = [
        (np.float32(one.importance), index) for index, one in held.items() if one.form in forms and not one.pinned
    ]
    assert holdings.least_important(forms) == [index for _, index in sorted(wanted)]


def test_pages_that_were_attended_to_give_way_later() -> None:
    holdings = Holdings()
    for index in range(3):
        holdings.hold(index, Held("int8", 16, 0.25, False))
    holdings.favour([0, 7])
    holdings.favour([0])
    holdings.favour([1])
    assert holdings.least_important(["int8"]) == [2, 1, 0]
