import time

from hypothesis import given
from hypothesis import strategies as st

from modularbase_core.packs.cycles import cycles

IDS = "abcdefg"
GRAPHS = st.fixed_dictionaries({one: st.lists(st.sampled_from(IDS), max_size=3, unique=True) for one in IDS})


def leads_back(graph, one):
    reached = set(graph[one])
    while more := {other for at in reached for other in graph[at]} - reached:
        reached |= more
    return one in reached


@given(GRAPHS)
def test_every_id_that_needs_itself_is_told_with_a_cycle_through_it_and_no_other_id(graph):
    found = cycles(graph)
    assert set(found) == {one for one in graph if leads_back(graph, one)}
    for one, (cycle, at) in found.items():
        assert cycle[at] == one
        assert len(set(cycle)) == len(cycle)
        assert all(other in graph[cycle[step - 1]] for step, other in enumerate(cycle))


@given(GRAPHS, st.permutations(IDS))
def test_ids_in_another_order_are_on_cycles_all_the_same(graph, order):
    assert set(cycles({one: graph[one] for one in order})) == set(cycles(graph))


def test_an_id_that_needs_itself_is_a_cycle():
    assert cycles({"a": ["a"], "b": ["a"]}) == {"a": (("a",), 0)}


def test_the_way_on_from_the_root_is_walked_in_its_order():
    found = cycles({"a": ["b", "e"], "b": ["a"], "c": ["a"], "d": ["c"], "e": ["d"]})
    assert found["b"] == (("a", "b"), 1)
    assert found["d"] == (("c", "a", "e", "d"), 3)


def test_a_ring_and_a_tangle_of_thousands_neither_recurse_nor_take_long():
    count = 5000
    start = time.process_time()
    ring = cycles({str(one): [str((one + 1) % count)] for one in range(count)})
    assert len(ring) == len(ring["7"][0]) == count
    hub = {"hub": [str(one) for one in range(count)], **{str(one): ["hub"] for one in range(count)}}
    assert {len(cycle) for cycle, _ in cycles(hub).values()} == {2}
    assert time.process_time() - start < 5  # it takes some 50 ms
