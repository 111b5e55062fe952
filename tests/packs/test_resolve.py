import dataclasses
from pathlib import Path

import pytest
from tiny_packs import BASE, BLOCKS, PACK, ROUTER, manifest

from modularbase_core.errors import PackError, PackIncompatible
from modularbase_core.packs.catalog import BrokenPlugin, Catalog, InstalledPack
from modularbase_core.packs.resolve import check_compatible, line_up
from modularbase_core.sdk import Pack
from modularbase_core.sdk.manifest import Dependency

RESIDENT = (
    manifest("tiny-base", "base", BASE),
    manifest("tiny-router", "router", ROUTER),
    manifest("general_chat", "system", PACK),
)


def catalog_of(*manifests):
    return Catalog(tuple(InstalledPack(Pack(Path(one.id)), one, f"dist-{one.id}") for one in manifests))


def ids(packs):
    return [one.id for one in packs]


def test_a_domain_pack_joins_the_residents():
    lineup = line_up(catalog_of(*RESIDENT, manifest("python_code", "domain", PACK)))
    assert (lineup.base.id, lineup.router.id, lineup.general_chat.id) == ("tiny-base", "tiny-router", "general_chat")
    assert ids(lineup.routable) == ["general_chat", "python_code"]
    assert lineup.refused == {}


def test_without_domain_packs_general_chat_is_all_there_is():
    assert ids(line_up(catalog_of(*RESIDENT)).routable) == ["general_chat"]


def test_a_second_system_pack_does_not_replace_general_chat():
    lineup = line_up(catalog_of(manifest("a_reasoning", "system", PACK), *RESIDENT))
    assert lineup.general_chat.id == "general_chat"
    assert ids(lineup.routable) == ["a_reasoning", "general_chat"]


def test_packs_that_do_not_fit_are_refused_with_their_reason():
    wide = dataclasses.replace(PACK, base_hidden_size=128)
    lineup = line_up(
        catalog_of(
            *RESIDENT,
            manifest("foreign", "domain", PACK, base="other-base"),
            manifest("newer", "domain", PACK, base_compatibility=("2.0", ">=3")),
            manifest("wide", "domain", wide),
            manifest("needy", "domain", PACK, dependencies=(Dependency("newer"),)),
            manifest("needier", "domain", PACK, dependencies=(Dependency("needy"),)),
            manifest("stale", "domain", PACK, dependencies=(Dependency("general_chat", ">=1.1"),)),
            manifest("content", "domain", PACK, dependencies=(Dependency("general_chat", ">=1.0"),)),
        )
    )
    assert ids(lineup.routable) == ["general_chat", "content"]
    assert {key: reason.split(";")[0] for key, reason in lineup.refused.items()} == {
        "foreign": "pack 'foreign' was made for base 'other-base', not 'tiny-base'",
        "newer": "pack 'newer' was made for tiny-base 2.0 or >=3, but 1.0.0 is installed",
        "wide": "pack 'wide' takes hidden states 128 wide, but tiny-base gives 64",
        "needy": "pack 'needy' needs newer, which was made for tiny-base 2.0 or >=3, but 1.0.0 is installed",
        "needier": "pack 'needier' needs needy, which needs newer, "
        "which was made for tiny-base 2.0 or >=3, but 1.0.0 is installed",
        "stale": "pack 'stale' needs general_chat >=1.1, but 1.0.0 is installed",
    }


def test_a_pack_for_another_base_is_incompatible():
    with pytest.raises(PackIncompatible, match="was made for base 'other-base', not 'tiny-base'"):
        check_compatible(manifest("foreign", "domain", PACK, base="other-base"), RESIDENT[0])


@pytest.mark.parametrize(
    ("catalog", "base", "told"),
    [
        (Catalog(), None, r"no base is installed; run `pip install modularbase-nano`$"),
        (
            Catalog(broken=(BrokenPlugin("nano", "d", "manifest.json is missing"),)),
            None,
            r"\(nano is broken: manifest\.json is missing\)",
        ),
        (catalog_of(RESIDENT[0], RESIDENT[2]), None, "no router pack for base 'tiny-base' is installed"),
        (catalog_of(RESIDENT[0], RESIDENT[1]), None, "no general chat pack for base 'tiny-base' is installed"),
        (
            catalog_of(*RESIDENT, manifest("second-router", "router", ROUTER)),
            None,
            r"several router packs for base 'tiny-base' are installed \(tiny-router, second-router\)",
        ),
        (catalog_of(*RESIDENT, manifest("other-base", "base", BASE)), None, "several bases are installed"),
        (catalog_of(*RESIDENT), "general_chat", "pack 'general_chat' is a system pack, not a base"),
        (catalog_of(*RESIDENT), "tiny-bas", r"no pack 'tiny-bas' is installed \(did you mean 'tiny-base'\?\)"),
    ],
)
def test_what_is_lacking_is_told(catalog, base, told):
    with pytest.raises(PackError, match=told):
        line_up(catalog, base)


def test_a_named_base_is_chosen_among_several():
    other = manifest("other-base", "base", dataclasses.replace(BASE, blocks=BLOCKS))
    assert line_up(catalog_of(*RESIDENT, other), "tiny-base").base.id == "tiny-base"


def test_a_pack_that_names_no_base_takes_any_whose_version_and_shapes_fit():
    free = manifest("free", "domain", PACK, base=None)
    check_compatible(free, RESIDENT[0])
    check_compatible(free, dataclasses.replace(RESIDENT[0], id="other-base", name="Other"))
    with pytest.raises(PackIncompatible, match=r"was made for tiny-base 1\.0, but 2\.0\.0 is installed"):
        check_compatible(free, dataclasses.replace(RESIDENT[0], version="2.0.0"))


def test_a_pack_that_describes_no_network_is_refused_and_stops_no_other():
    bare = manifest("bare", "domain", None)
    lineup = line_up(catalog_of(*RESIDENT, bare, manifest("python_code", "domain", PACK)))
    assert ids(lineup.routable) == ["general_chat", "python_code"]
    assert lineup.refused["bare"].startswith("pack 'bare' describes no network, so it cannot run; add its architecture")
