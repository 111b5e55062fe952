import dataclasses
import time
from pathlib import Path

import pytest
from tiny_packs import BASE, BLOCKS, PACK, ROUTER, manifest

from modularbase_core.errors import PackError, PackIncompatible
from modularbase_core.packs.catalog import BrokenPlugin, Catalog, InstalledPack, ShadowedPack
from modularbase_core.packs.resolve import check_compatible, check_fetched, line_up
from modularbase_core.sdk import Pack
from modularbase_core.sdk.manifest import Dependency

RESIDENT = (
    manifest("tiny-base", "base", BASE),
    manifest("tiny-router", "router", ROUTER),
    manifest("general_chat", "system", PACK),
)


def catalog_of(*manifests):
    return Catalog(tuple(InstalledPack(Pack(Path(one.id)), one, f"dist-{one.id}") for one in manifests))


def needy(id, *needs, version="1.0.0", type="domain", **more):
    """Describe a pack by what it needs, such as `logic >=2`."""
    dependencies = tuple(Dependency(*need.split(" ", 1)) for need in needs)
    return dataclasses.replace(manifest(id, type, PACK, dependencies=dependencies, **more), version=version)


def refusals(*manifests, **catalog):
    return line_up(dataclasses.replace(catalog_of(*RESIDENT, *manifests), **catalog)).refused


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


def test_a_missing_pack_is_told_with_the_chain_that_leads_to_it():
    refused = refusals(needy("python_code", "reasoning >=1.1"), needy("reasoning", "logic >=2", version="1.2"))
    assert refused == {
        "python_code": "pack 'python_code' needs reasoning >=1.1, which needs logic >=2, which is not installed; "
        "install logic",
        "reasoning": "pack 'reasoning' needs logic >=2, which is not installed; install logic",
    }


def test_of_several_chains_the_shortest_is_told_and_of_equals_the_same_in_any_order():
    packs = [
        needy("far", "x", "y", "near"),
        needy("near", "gone"),
        needy("x", "y"),
        needy("y", "z"),
        needy("z", "gone"),
    ]
    packs += [needy("right", "z"), needy("left", "z"), needy("both", "right", "left")]
    refused = refusals(*packs)
    assert refused["far"] == "pack 'far' needs near, which needs gone, which is not installed; install gone"
    assert (
        refused["both"]
        == "pack 'both' needs left, which needs z, which needs gone, which is not installed; install gone"
    )
    assert refusals(*packs[::-1]) == refused


def test_a_long_chain_is_told_by_its_ends():
    refused = refusals(*(needy(f"p{at}", f"p{at + 1} >=1") for at in range(9)))
    assert refused["p0"] == (
        "pack 'p0' needs p1 >=1, which needs p2 >=1, which needs p3 >=1, which needs p8 through 4 more packs, "
        "which needs p9 >=1, which is not installed; install p9"
    )
    assert "more packs" not in refused["p2"]


def test_a_cycle_refuses_the_packs_in_it_and_those_that_need_them_and_no_other():
    refused = refusals(
        needy("python_code", "reasoning"), needy("reasoning", "python_code"), needy("app", "python_code"), needy("law")
    )
    help = "depend on each other; install another version of one of them"
    assert refused == {
        "python_code": f"pack 'python_code' is in a circle: python_code -> reasoning -> python_code {help}",
        "reasoning": f"pack 'reasoning' is in a circle: reasoning -> python_code -> reasoning {help}",
        "app": f"pack 'app' needs python_code, which is in a circle: python_code -> reasoning -> python_code {help}",
    }


def test_a_long_cycle_is_told_by_its_beginning():
    refused = refusals(*(needy(f"p{at}", f"p{(at + 1) % 9}") for at in range(9)))
    assert refused["p8"].startswith("pack 'p8' is in a circle: p8 -> p0 -> p1 -> (6 more) -> p8 depend on each other;")


def test_of_two_demands_that_exclude_each_other_both_are_told_to_both():
    lineup = line_up(catalog_of(*RESIDENT, needy("a", "c >=2"), needy("b", "c <2"), needy("c", version="1.5")))
    assert lineup.refused == {
        "a": "pack 'a' needs c >=2, but 1.5 is installed, and pack 'b' needs c <2: no version suits both; "
        "uninstall a or b, or change the version of one"
    }
    assert lineup.notes == {
        "b": "pack 'b' needs c <2, and pack 'a' needs c >=2: no version suits both, so only b can run"
    }


@pytest.mark.parametrize(
    ("third", "what"), [([], "which is not installed"), ([needy("c", version="1.5")], "but 1.5 is installed")]
)
def test_neither_of_two_demands_may_be_met(third, what):
    refused = refusals(needy("a", "c >=2"), needy("b", "c <1"), *third)
    assert refused["a"].startswith(f"pack 'a' needs c >=2, {what}, and pack 'b' needs c <1: no version suits both; ")
    assert refused["b"].startswith(f"pack 'b' needs c <1, {what}, and pack 'a' needs c >=2: no version suits both; ")


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        (["c >=2,<1"], "needs c >=2,<1, but 1.5 is installed, and no version is both; correct the manifest of a"),
        (
            ["c >=2", "c <2"],
            "needs c >=2, but 1.5 is installed, and it also needs c <2: no version suits both; "
            "correct the manifest of a",
        ),
        (
            ["c >=2", "gone"],
            "needs c >=2, but 1.5 is installed, and needs gone, which is not installed; "
            "install another version of c or of a, install gone",
        ),
        (
            ["k", "l", "m", "n", "o"],
            "needs k, which is not installed, and needs l, which is not installed, and needs m, which is not "
            "installed, and 2 more; install k, install l, install m",
        ),
        (
            ["tiny-base >=2"],
            "needs tiny-base >=2, but 1.0.0 is installed; install another version of tiny-base or of a",
        ),
        (["cc"], "needs cc, which is an alias of c, but packs are needed by their id; correct it in the manifest of a"),
        (["reasonin"], "needs reasonin, which is not installed (did you mean 'reasoning'?); install reasonin"),
        (["bad"], "needs bad, which is installed but broken; manifest.json is missing"),
    ],
)
def test_what_a_pack_lacks_is_told_whole(needs, told):
    packs = needy("c", version="1.5", aliases=("cc",)), needy("reasoning")
    refused = refusals(
        needy("a", *needs), *packs, broken=(BrokenPlugin("plugin", "d", "manifest.json is missing", "bad"),)
    )
    assert refused == {"a": f"pack 'a' {told}"}


def test_needs_of_residents_and_prereleases_are_met():
    needs = ("tiny-base ==1.*", "tiny-router", "general_chat <2", "next >=1.9")
    assert refusals(needy("a", *needs), needy("next", version="2.0rc1")) == {}


def test_a_pack_that_needs_another_base_is_told_which_is_in_use():
    lineup = line_up(catalog_of(*RESIDENT, manifest("other", "base", BASE), needy("a", "other")), "tiny-base")
    told = "which is a base, but tiny-base is the one in use; name other as `base` in the settings, or uninstall a"
    assert lineup.refused == {"a": f"pack 'a' needs other, {told}"}


def test_a_pack_left_out_by_the_limits_on_plugins_is_told_with_them():
    refused = refusals(needy("a", "gone"), only=("nano",))
    assert refused["a"].startswith("pack 'a' needs gone, which is not loaded; plugins are limited to nano; name more")


def with_older(newest, *older):
    others = tuple(ShadowedPack(InstalledPack(Pack(Path(f"old{at}")), one, "old"), "") for at, one in enumerate(older))
    return dataclasses.replace(catalog_of(*RESIDENT, newest), shadowed=others)


def test_of_several_versions_the_newest_that_fits_the_base_is_used():
    made_for_2 = needy("law", version="3.0", base_compatibility=("2.0",))
    lineup = line_up(with_older(made_for_2, needy("law", version="1.0"), needy("law", version="2.0")))
    assert lineup.routable[-1].manifest.version == "2.0"
    assert lineup.refused == {}
    assert lineup.notes == {
        "law": "law 2.0 of old is used instead of 3.0 of dist-law, "
        "which was made for tiny-base 2.0, but 1.0.0 is installed"
    }


def test_where_no_version_fits_the_newest_that_is_meant_for_this_base_says_why():
    foreign = needy("law", version="3.0", base="other-base")
    lineup = line_up(with_older(foreign, needy("law", version="2.0", base_compatibility=("2.0",))))
    assert lineup.refused["law"].startswith("pack 'law' was made for tiny-base 2.0, but 1.0.0 is installed;")


def test_a_version_that_would_do_but_is_not_used_is_named():
    catalog = with_older(needy("law", version="2.0"), needy("law", version="1.0"))
    needing = InstalledPack(Pack(Path("a")), needy("a", "law <2"), "d")
    refused = line_up(dataclasses.replace(catalog, packs=(*catalog.packs, needing))).refused
    assert refused["a"] == "pack 'a' needs law <2, but 2.0 is used; 1.0 is installed too, so uninstall law 2.0"


def test_two_bases_may_each_bring_a_general_chat():
    theirs = dataclasses.replace(RESIDENT[2], version="2.0.0", base="other-base")
    mine = ShadowedPack(InstalledPack(Pack(Path("mine")), RESIDENT[2], "dist"), "older")
    catalog = dataclasses.replace(
        catalog_of(*RESIDENT[:2], theirs, manifest("other-base", "base", BASE)), shadowed=(mine,)
    )
    assert line_up(catalog, "tiny-base").general_chat.manifest is RESIDENT[2]


def test_a_pack_that_is_yet_to_be_fetched_is_refused_with_what_to_do(tmp_path):
    described = needy("law", files={"model.safetensors": "0" * 64}, downloads={"model.safetensors": "https://a.org/b"})
    law = InstalledPack(Pack(tmp_path), described, "d")
    told = "pack 'law' lacks model.safetensors, yet to be downloaded; run `modularbase pack fetch law`"
    catalog = catalog_of(*RESIDENT)
    assert line_up(dataclasses.replace(catalog, packs=(*catalog.packs, law))).refused == {"law": told}
    with pytest.raises(PackError, match="yet to be downloaded"):
        check_fetched(law)


@pytest.mark.parametrize(
    ("catalog", "told"),
    [
        (
            catalog_of(
                RESIDENT[0], manifest("tiny-router", "router", ROUTER, base_compatibility=("2.0",)), RESIDENT[2]
            ),
            r"no router can run on base 'tiny-base': pack 'tiny-router' was made for tiny-base 2\.0, but 1\.0\.0 is",
        ),
        (
            catalog_of(*RESIDENT[:2], needy("general_chat", "logic", type="system"), needy("other", type="system")),
            r"no general chat can run on base 'tiny-base': pack 'general_chat' needs logic, which is not installed",
        ),
        (
            dataclasses.replace(
                catalog_of(*RESIDENT[:2], needy("other", type="system")),
                broken=(BrokenPlugin("nano", "dist-tiny-base", "it is no JSON", "general_chat"),),
            ),
            r"no general chat pack for base 'tiny-base' is installed \(general_chat is broken: it is no JSON\)",
        ),
        (
            catalog_of(RESIDENT[0], manifest("r", "router", ROUTER, base="other-base"), RESIDENT[2]),
            r"no router pack for base 'tiny-base' is installed \(r is for base 'other-base'\); install dist-tiny-base",
        ),
        (
            catalog_of(dataclasses.replace(RESIDENT[0], dependencies=(Dependency("tok"),)), *RESIDENT[1:]),
            r"pack 'tiny-base' needs tok, which is not installed; install tok",
        ),
    ],
)
def test_a_resident_that_cannot_run_is_told_with_its_own_reason(catalog, told):
    with pytest.raises(PackError, match=told):
        line_up(catalog)


def test_a_pack_that_falls_later_takes_along_those_that_need_it():
    lineup = line_up(catalog_of(*RESIDENT, needy("big"), needy("a", "big"), needy("b", "a"), needy("law")))
    less = lineup.without({"big": "pack 'big' needs 9 MiB but a slot holds 8 MiB; raise memory_bytes"})
    assert ids(less.routable) == ["general_chat", "law"]
    assert less.refused["big"].startswith("pack 'big' needs 9 MiB")
    assert less.refused["b"] == (
        "pack 'b' needs a, which needs big, which cannot be used: "
        "pack 'big' needs 9 MiB but a slot holds 8 MiB; raise memory_bytes"
    )
    assert lineup.without({}) is lineup


def test_general_chat_that_falls_later_stops_everything():
    chat = needy("general_chat", "big", type="system")
    with pytest.raises(PackError, match="pack 'general_chat' needs big, which cannot be used: too big"):
        line_up(catalog_of(*RESIDENT[:2], chat, needy("big"))).without({"big": "too big"})


@pytest.mark.parametrize("last", [["p0"], ["gone"], []])
def test_a_chain_of_thousands_is_resolved_at_once(last):
    count = 2000
    packs = [needy(f"p{at}", f"p{at + 1} >=1") for at in range(count)]
    catalog = catalog_of(*RESIDENT, *packs, needy(f"p{count}", *last))
    start = time.process_time()
    assert len(line_up(catalog).refused) == (count + 1 if last else 0)
    assert time.process_time() - start < 5  # it takes some 70 ms
