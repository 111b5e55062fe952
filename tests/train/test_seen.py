"""What was seen is known again, however often it is written down and taken in."""

from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.train.seen import Seen


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1) | st.none(), max_size=80))
def test_a_number_is_new_once_whatever_was_settled_meanwhile(numbers):
    seen, again, known, kept = Seen(), Seen(), set(), []
    for number in numbers:
        if number is None:
            kept.append(seen.settle())
            assert list(kept[-1]) == sorted(kept[-1])
            again.extend(kept[-1])
        else:
            assert seen.add(number) == (number not in known)
            known.add(number)
    again.extend(seen.settle())
    assert not any(again.add(number) for number in known)
    assert sum(map(len, kept)) <= len(known)
