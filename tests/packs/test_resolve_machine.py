"""Which packs fit, against a model that is too simple to be wrong, while packs of all kinds come and go."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

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
DOMAIN = ("art", "bio", "code", "data", "edit", "film", "gene")
VERSIONS = ("1.0", "1.5rc1", "1.5", "2.0")
SPECIFIERS = ("", "", "", ">=1.0", ">=1.5", "<1.5", "==1.0", "~=1.0", ">1.0,!=1.5", "==2.*")
NEED = st.builds(Dependency, st.sampled_from([*DOMAIN, *DOMAIN, *RESIDENT, "gone"]), st.sampled_from(SPECIFIERS))
NEEDS = st.lists(NEED, max_size=3)
BASES = st.sampled_from(((), ("1.0",), ("1.0", "2.0"), (">=2",)))
RIVAL = re.compile(r"[^,;]*, and (?:pack '\w+'|it also) needs [a-z_-]+ (\S+): no version suits both")
FAR = re.compile(r"needs ([a-z_-]+) through (\d+) more packs, which (.*)")
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

    def reached(self, one: str, steps: int) -> set[str]:
        """Ids that so many needs, one after the other, lead to."""
        at = {one}
        for _ in range(steps):
            at = {need.id for other in at if other in self.used for need in self.needs(other)}
        return at

    def circles(self, one: str) -> bool:
        reached: set[str] = set()
        while more := {need.id for at in {one, *reached} & self.fitting for need in self.needs(at)} - reached:
            reached |= more
        return one in reached


def catalog_of(installed: list[Manifest]) -> Catalog:
    """List manifests as `discover` does, one of each id ahead of its older versions."""
    packs = [InstalledPack(Pack(Path(f"{one.id}-{one.version}")), one, "dist") for one in installed]
    newest = {one.id: one for one in sorted(packs, key=lambda one: one.version)}
    newest = {one.id: newest[one.id] for one in packs}
    shadowed = tuple(ShadowedPack(one, "older") for one in packs if one is not newest[one.id])
    return Catalog(tuple(newest.values()), shadowed=shadowed)


def check_sentence(pack_id: str, sentence: str, model: Model) -> None:
    """Follow a reason from the pack that it begins with; every step of it must be a need, and its end true."""
    start = f"pack {pack_id!r} "
    assert sentence.startswith(start)
    at, rest = pack_id, sentence.removeprefix(start)
    while step := STEP.match(rest):
        if more := FAR.match(rest):
            assert more[1] in model.reached(at, int(more[2]) + 1)
            at, rest = more[1], more[3]
            continue
        need = Dependency(step[1], step[2] or "")
        assert need in model.needs(at)
        if not step[3].startswith("which "):
            version = re.match(r"but (\S+) is (?:installed|used)", step[3])
            assert version
            assert version[1] == model.used[need.id].version
            assert not model.met(need)
            check_rival(need, step[3])
            return
        if step[3].startswith(("which is not installed", "which is a base")):
            assert need.id not in model.ids
            check_rival(need, step[3])
            return
        at, rest = need.id, step[3].removeprefix("which ")
    if rest.startswith("is in a circle: "):
        names = rest.removeprefix("is in a circle: ").split(" depend on each other")[0].split(" -> ")
        assert names[0] == names[-1] == at
        assert len(set(names)) == len(names) - 1 > 1
        for one, other in pairwise(names):
            if more := re.fullmatch(r"\((\d+) more\)", other):
                assert at in model.reached(one, int(more[1]) + 1)
                return
            assert other in model.reached(one, 1)
        return
    assert rest.startswith("was made for tiny-base ")
    assert at in model.ids - model.used.keys()


def check_rival(need: Dependency, rest: str) -> None:
    """What is said to exclude this need must do so."""
    if rival := RIVAL.match(rest):
        assert not any(admits(need, one) and admits(Dependency(need.id, rival[1]), one) for one in VERSIONS)


class Installations(RuleBasedStateMachine):
    @initialize(version=st.sampled_from(("1.0", "2.0")))
    def start(self, version: str) -> None:
        self.installed = {(one, version): described(one, version, []) for one in RESIDENT}

    @rule(pack_id=st.sampled_from(DOMAIN), version=st.sampled_from(VERSIONS), needs=NEEDS, base=BASES)
    def install(self, pack_id: str, version: str, needs: list[Dependency], base: tuple[str, ...]) -> None:
        self.installed[pack_id, version] = described(pack_id, version, needs, base)

    @rule(ids=st.lists(st.sampled_from(DOMAIN), min_size=2, unique=True), last=st.none() | NEED, circle=st.booleans())
    def install_chain(self, ids: list[str], last: Dependency | None, circle: bool) -> None:
        for one, other in pairwise(ids):
            self.installed[one, "2.0"] = described(one, "2.0", [Dependency(other)])
        needs = [Dependency(ids[0])] if circle else [last] if last else []
        self.installed[ids[-1], "2.0"] = described(ids[-1], "2.0", needs)

    @rule(pack_id=st.sampled_from(DOMAIN))
    def remove_newest(self, pack_id: str) -> None:
        versions = [version for one, version in self.installed if one == pack_id]
        if versions:
            del self.installed[pack_id, max(versions, key=Version)]

    @rule(pack_id=st.sampled_from([*RESIDENT]), version=st.sampled_from(VERSIONS), needs=st.lists(NEED, max_size=1))
    def change_resident(self, pack_id: str, version: str, needs: list[Dependency]) -> None:
        self.installed = {key: one for key, one in self.installed.items() if key[0] != pack_id}
        self.installed[pack_id, version] = described(pack_id, version, needs)

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
            check_sentence(sentence.split("'")[1], sentence, model)
            return
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


TestInstallations = Installations.TestCase
TestInstallations.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
