import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from modularbase_core.packs.ranges import range_of

VERSIONS = st.builds(
    lambda release, suffix: ".".join(map(str, release)) + suffix,
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from(("", "", "", "a1", "rc1", ".post1", ".dev1", "rc1.dev1")),
)
RELEASES = st.lists(st.integers(0, 3), min_size=2, max_size=3).map(lambda release: ".".join(map(str, release)))
CLAUSES = st.one_of(
    st.builds("{}{}".format, st.sampled_from(("<", "<=", ">", ">=", "==", "!=")), VERSIONS),
    st.builds("{}{}.*".format, st.sampled_from(("==", "!=")), RELEASES),
    st.builds("~={}".format, RELEASES),
)
SPECIFIERS = st.lists(CLAUSES, max_size=2).map(",".join)


@given(SPECIFIERS, SPECIFIERS, VERSIONS)
def test_specifiers_that_exclude_each_other_share_no_version(one, other, version):
    assume(range_of(one).excludes(range_of(other)))
    assert not SpecifierSet(f"{one},{other}".strip(",")).contains(Version(version), prereleases=True)


@given(SPECIFIERS, VERSIONS)
def test_a_version_that_a_specifier_admits_lies_in_its_range(specifier, version):
    assume(SpecifierSet(specifier).contains(Version(version), prereleases=True))
    assert not range_of(specifier).excludes(range_of(f"=={version}"))


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        (">=2", "<2", True),
        (">2", "<=2", True),
        (">=2", "<=2", False),
        ("==1.4.*", ">=1.5", True),
        ("==1.4.*", ">=1.4.9", False),
        ("~=1.4.2", ">=1.5", True),
        ("~=1.4", ">=1.5", False),
        ("~=1.4", ">=2", True),
        ("==1.0", "==1.0.0", False),
        ("==1.0", "==1.1", True),
        (">=2.0rc1", "<2.0", False),
        ("", "<1", False),
        (">2,<1", "", True),
        ("", "", False),
    ],
)
def test_demands_that_meet_or_do_not(one, other, apart):
    assert range_of(one).excludes(range_of(other)) is apart
    assert range_of(other).excludes(range_of(one)) is apart
