"""Which packs fit, against a model that is too simple to be wrong, while packs of all kinds come and go."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from tiny_packs import BASE, PACK, ROUTER, manifest

from modularbase_core.errors import PackError
from modularbase_core.packs.catalog import Catalog, InstalledPack, ShadowedPack
from modularbase_core.packs.resolve import Lineup, line_up
from modularbase_core.sdk import Pack
from modularbase_core.sdk.manifest import Dependency, Manifest

RESIDENT = {"tiny-base": ("base", BASE), "tiny-router": ("router", ROUTER), "general_chat": ("system", PACK)}
DOMAIN = ("art", "bio", "code", "data", "edit")
VERSIONS = ("1.0", "1.5rc1", "1.5", "2.0")
SPECIFIERS = ("", ">=1.5", "<1.5", "==1.0", "~=1.0", ">1.0,!=1.5", "==2.*")
IDS = st.sampled_from([*DOMAIN, "general_chat"])
NEEDS = st.lists(
    st.builds(Dependency, st.sampled_from([*DOMAIN, *RESIDENT, "gone"]), st.sampled_from(SPECIFIERS)), max_size=3
)
BASES = st.sampled_from(((), ("1.0",), ("1.0", "2.0"), (">=2",)))
STEP = re.compile(r"needs ([a-z_-]+)(?: (\S+))?, (.*)")


def admits(need: Dependency, version: str) -> bool:
    return SpecifierSet(need.version).contains(version, prereleases=True)


def described(pack_id: str, version: str, needs: list[Dependency], base: tuple[str, ...] = ()) -> Manifest:
    type, network = RESIDENT.get(pack_id, ("domain", PACK))
    needs = [need for need in needs if need.id != pack_id]
    more = {} if type == "base" else {"base_compatibility": base}
    return replace(manifest(pack_id, type, network, **more), version=version, dependencies=tuple(needs))


class Model:
    """The newest version of each that fits the base; of those, all but what lacks a need or needs itself."""

    def __init__(self, installed: list[Manifest]) -> None:
        (base,) = (one for one in installed if one.type == "base")
        self.ids = {one.id for one in installed}
        self.used = {
            one.id: one
            for one in sorted(installed, key=lambda one: Version(one.version))
            if one.type == "base" or one.admits_base(base.version)
        }
        self.fitting = set(self.used)
        while lost := {one for one in self.fitting if not self.stands(one)}:
            self.fitting -= lost

    def stands(self, one: str) -> bool:
        return all(need.id in self.fitting and self.met(need) for need in self.needs(one)) and not self.circles(one)

    def needs(self, one: str) -> tuple[Dependency, ...]:
        return self.used[one].dependencies

    def met(self, need: Dependency) -> bool:
        return need.id in self.used and admits(need, self.used[need.id].version)

    def circles(self, one: str) -> bool:
        reached: set[str] = set()
        while more := {need.id for at in {one, *reached} & self.fitting for need in self.needs(at)} - reached:
            reached |= more
        return one in reached


def catalog_of(installed: list[Manifest]) -> Catalog:
    """List manifests as `discover` does, one of each id ahead of its older versions."""
    packs: dict[str, InstalledPack] = {}
    shadowed = []
    for one in sorted(installed, key=lambda one: Version(one.version), reverse=True):
        pack = InstalledPack(Pack(Path(f"{one.id}-{one.version}")), one, "dist")
        if packs.setdefault(one.id, pack) is not pack:
            shadowed.append(ShadowedPack(pack, "older"))
    in_order = {one.id: packs[one.id] for one in installed}
    return Catalog(tuple(in_order.values()), shadowed=tuple(shadowed))


def check_sentence(pack_id: str, sentence: str, model: Model) -> None:
    """Follow a reason from the pack that it begins with; every step of it must be a need, and its end true."""
    start = f"pack {pack_id!r} "
    assert sentence.startswith(start)
    at, rest = pack_id, sentence.removeprefix(start)
    while step := STEP.match(rest):
        need = Dependency(step[1], step[2] or "")
        assert need in model.needs(at)
        if not step[3].startswith("which "):
            version = re.match(r"but (\S+) is (?:installed|used)", step[3])
            assert version and version[1] == model.used[need.id].version and not model.met(need)
            return check_rival(need, step[3])
        if step[3].startswith(("which is not installed", "which is a base")):
            assert need.id not in model.ids
            return check_rival(need, step[3])
        at, rest = need.id, step[3].removeprefix("which ")
    if rest.startswith("is in a circle: "):
        names = rest.removeprefix("is in a circle: ").split(" depend on each other")[0].split(" -> ")
        assert names[0] == names[-1] == at and len(set(names)) == len(names) - 1 > 1
        assert all(
            after in [need.id for need in model.needs(one)] for one, after in zip(names, names[1:], strict=False)
        )
        return None
    assert rest.startswith("was made for tiny-base ")
    assert at in model.ids and at not in model.used
    return None


def check_rival(need: Dependency, rest: str) -> None:
    """What is said to exclude this need must do so."""
    rival = re.match(
        r"(?:but|which)[^,;]*, and (?:pack '\w+'|it also) needs [a-z_-]+ (\S+): no version suits both", rest
    )
    if rival:
        assert not any(admits(need, one) and SpecifierSet(rival[1]).contains(one, prereleases=True) for one in VERSIONS)


class Installations(RuleBasedStateMachine):
    @initialize(version=st.sampled_from(("1.0", "2.0")))
    def start(self, version: str) -> None:
        self.installed = {(one, version): described(one, version, []) for one in RESIDENT}

    @rule(pack_id=IDS, version=st.sampled_from(VERSIONS), needs=NEEDS, base=BASES)
    def install(self, pack_id: str, version: str, needs: list[Dependency], base: tuple[str, ...]) -> None:
        self.installed[pack_id, version] = described(pack_id, version, needs, base)

    @rule(pack_id=IDS)
    def remove(self, pack_id: str) -> None:
        versions = [key for key in self.installed if key[0] == pack_id]
        for key in versions[:1] if len(versions) > 1 or pack_id not in RESIDENT else ():
            del self.installed[key]

    @rule(version=st.sampled_from(VERSIONS), needs=st.one_of(st.just([]), NEEDS))
    def change_base(self, version: str, needs: list[Dependency]) -> None:
        self.installed = {key: one for key, one in self.installed.items() if key[0] != "tiny-base"}
        self.installed["tiny-base", version] = described("tiny-base", version, needs)

    def lined_up(self, installed: list[Manifest]) -> tuple[Lineup | str, set[str]]:
        try:
            lineup = line_up(catalog_of(installed))
        except PackError as error:
            return str(error), set()
        return lineup, {one.id for one in (lineup.base, lineup.router, *lineup.routable)}

    @invariant()
    def those_fit_that_the_model_says(self) -> None:
        installed = list(self.installed.values())
        model = Model(installed)
        lineup, fitting = self.lined_up(installed)
        if isinstance(lineup, str):
            fallen = [one for one in RESIDENT if one not in model.fitting]
            assert fallen
            sentence = lineup[lineup.index("pack '") :]
            return check_sentence(sentence.split("'")[1], sentence, model)
        assert fitting == model.fitting
        assert {one.manifest.version for one in lineup.routable if one.id in DOMAIN} == {
            model.used[one].version for one in fitting if one in DOMAIN
        }
        assert set(lineup.refused) == model.ids - fitting
        assert set(lineup.notes) <= fitting
        for one, sentence in lineup.refused.items():
            check_sentence(one, sentence, model)

    @invariant()
    def the_order_of_the_catalog_changes_nothing(self) -> None:
        installed = list(self.installed.values())
        lineup, fitting = self.lined_up(installed)
        other, others = self.lined_up(installed[::-1])
        assert others == fitting
        if isinstance(lineup, Lineup) and isinstance(other, Lineup):
            assert (other.refused, other.notes) == (lineup.refused, lineup.notes)
        else:
            assert other == lineup

    @invariant()
    def what_nobody_needs_can_be_removed(self) -> None:
        installed = list(self.installed.values())
        needed = {need.id for one in installed for need in one.dependencies}
        _, fitting = self.lined_up(installed)
        for free in [one for one in DOMAIN if one not in needed][:2]:
            left = [one for one in installed if one.id != free]
            assert self.lined_up(left)[1] == fitting - {free}


TestInstallations = pytest.mark.filterwarnings("error")(Installations.TestCase)
TestInstallations.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
