"""Rows: which packs answer, as flags ask for them."""

import pytest
from tiny_packs import PACK, catalog_of, manifest, write_pack

from modularbase_core.errors import InputError, PackError
from modularbase_core.evaluate.selection import NONE, ROUTED, Selection, select, without_packs
from modularbase_core.packs.resolve import line_up
from modularbase_core.turn.route import choose


@pytest.fixture(scope="module")
def catalog(tiny_packs, tmp_path_factory):
    law = write_pack(tmp_path_factory.mktemp("law") / "law", manifest("law", "domain", PACK), seed=7)
    other = manifest("far", "domain", PACK, base="another-base")
    far = write_pack(tmp_path_factory.mktemp("far") / "far", other, seed=8)
    return catalog_of({**tiny_packs, "law": law, "far": far})


@pytest.fixture(scope="module")
def lineup(catalog):
    return line_up(catalog)


def rows(catalog, lineup, words=(), slots=2, **more):
    return [(row.name, row.packs) for row in select(catalog, lineup, words, slots=slots, **more)]


GENERAL = (NONE, ("general_chat",))


def test_the_router_chooses_where_nothing_is_named(catalog, lineup):
    assert rows(catalog, lineup) == [(ROUTED, ())]


def test_packs_are_named_by_id_or_alias_and_answer_together(catalog, lineup):
    assert rows(catalog, lineup, ["python"]) == [("python_code", ("python_code",))]
    assert rows(catalog, lineup, ["law", "python", "law"]) == [("law+python_code", ("law", "python_code"))]


def test_all_packs_are_none_each_and_routed(catalog, lineup):
    each = [("python_code", ("python_code",)), ("law", ("law",))]
    assert rows(catalog, lineup, every=True) == [GENERAL, *each, (ROUTED, ())]
    together = ("python_code+law", ("python_code", "law"))
    assert rows(catalog, lineup, ["python", "law"], every=True) == [GENERAL, *each, together, (ROUTED, ())]
    assert rows(catalog, lineup, ["law"], every=True) == [GENERAL, *each, (ROUTED, ())]


def test_no_pack_is_base_and_general_chat(catalog, lineup):
    assert rows(catalog, lineup, none=True) == [GENERAL]
    assert rows(catalog, lineup, ["law"], none=True) == [GENERAL, ("law", ("law",))]
    assert without_packs(lineup) == Selection(*GENERAL)


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["pyhton"], PackError, "no pack 'pyhton' is installed.*did you mean 'python'"),
        (["tiny-base"], InputError, "pack 'tiny-base' cannot be asked to answer: it is the base"),
        (["far"], InputError, "pack 'far' cannot be asked to answer: .*another-base"),
        (["law", "python"], InputError, "are 2 packs but 1 slots hold no more at once; raise slots"),
    ],
)
def test_what_cannot_answer_is_told(catalog, lineup, words, error, told):
    with pytest.raises(error, match=told):
        select(catalog, lineup, words, slots=1)


def test_weights_are_those_of_a_turn():
    forced = Selection("both", ("law", "python_code"))
    assert list(forced.blend(None).items()) == [("law", 0.5), ("python_code", 0.5)]
    route = choose({"law": 0.9, "python_code": 0.6}, "general_chat", threshold=0.5, packs_per_turn=2)
    assert dict(Selection(ROUTED, ()).blend(route)) == pytest.approx({"law": 0.6, "python_code": 0.4})
