"""What an argument means, which wheels may come in, and what pip is asked to do then."""

import json
import zipfile
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_packs import BASE, PACK, catalog_of, manifest, write_pack
from tiny_wheels import BROKEN, FakePip, write_wheel

from modularbase_core.errors import ManifestError, ModularBaseError, PackError, PackIncompatible, PipError, WeightsError
from modularbase_core.packs import install as installing
from modularbase_core.packs.catalog import BrokenPlugin, Catalog
from modularbase_core.packs.install import Target, already, check_fit, find, install, needed, read_target
from modularbase_core.packs.pip import NotOffered, Outcome, Pip, Sources
from modularbase_core.packs.wheels import look_into
from modularbase_core.sdk.manifest import WEIGHTS_FILE

PYTHON = manifest("python_code", "domain", PACK, aliases=("python",))
SQL = manifest("sql", "domain", PACK)
DISTRIBUTION = "modularbase-pack-python"


@pytest.fixture
def tiny(tiny_packs):
    """What is installed: the tiny set, of the distribution `tiny`."""
    return catalog_of(tiny_packs)


@pytest.mark.parametrize(
    ("text", "names", "wanted"),
    [
        ("sql", ("modularbase-pack-sql",), ""),
        ("SQL", ("modularbase-pack-sql",), ""),
        ("sql_tips", ("modularbase-pack-sql-tips", "modularbase-pack-sql"), ""),
        ("sql_tips@1.0", ("modularbase-pack-sql-tips", "modularbase-pack-sql"), "==1.0"),
        ("sql@1.0.0", ("modularbase-pack-sql",), "==1.0.0"),
        ("sql==1.0.0", ("modularbase-pack-sql",), "==1.0.0"),
        ("sql>=1,<2", ("modularbase-pack-sql",), "<2,>=1"),
        ("modularbase-pack-sql", ("modularbase-pack-sql",), ""),
        ("modularbase_nano", ("modularbase-nano",), ""),
    ],
)
def test_a_name_is_looked_for_where_packs_are_offered(text, names, wanted):
    target = read_target(text, Catalog())
    assert (target.names, target.wanted, target.place) == (names, wanted, "")


def test_an_installed_pack_is_looked_for_where_it_came_from(tiny):
    assert read_target("python", tiny).names == ("tiny", "modularbase-pack-python")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("https://example.org/x-1.0-py3-none-any.whl", "https://example.org/x-1.0-py3-none-any.whl"),
        ("git+https://example.org/x.git@main", "git+https://example.org/x.git@main"),
        ("x @ https://example.org/x.whl", "https://example.org/x.whl"),
        ("x@https://example.org/x.whl", "https://example.org/x.whl"),
    ],
)
def test_an_address_is_taken_as_it_is(text, place):
    assert read_target(text, Catalog()).place == place


def test_paths_must_lead_to_something_that_pip_can_build(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    (tmp_path / "project/pyproject.toml").touch()
    (tmp_path / "sql").mkdir()
    assert read_target("./project", Catalog()).place == str(tmp_path / "project")
    assert read_target("sql", Catalog()).names  # a folder of that name here changes nothing
    with pytest.raises(PackError, match="is no project, not a distribution"):
        read_target("./sql", Catalog())
    write_pack(tmp_path / "sql", SQL)
    with pytest.raises(PackError, match="is a pack's data, not a distribution"):
        read_target("./sql", Catalog())
    with pytest.raises(PackError, match="does not exist"):
        read_target("gone-1.0-py3-none-any.whl", Catalog())


@pytest.mark.parametrize(
    "text", ["", " ", "sql@bad", "sql@", "a b", "--index-url", "-e", "sql==", "../", "a\0b", "@1.0"]
)
def test_what_names_no_pack_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackError):
        read_target(text, Catalog())


@given(st.text(max_size=30).filter(lambda text: "\0" not in text and "/" not in text))
def test_no_text_breaks_the_reading_of_a_name(text):
    try:
        target = read_target(text, Catalog())
    except PackError:
        return
    assert target.names or target.place
    assert not any(name.startswith("-") for name in target.names)


def test_what_is_there_and_whole_is_installed_already(tiny, monkeypatch):
    versions = {"tiny": "1.2.0"}
    monkeypatch.setattr(installing, "installed_version", versions.get)
    assert already(read_target("python", tiny), tiny) == "tiny"
    assert already(read_target("python@1.2.0", tiny), tiny) == "tiny"
    assert already(read_target("python@1.3.0", tiny), tiny) is None
    broken = replace(tiny, broken=(BrokenPlugin("python_code", "tiny", "ImportError"),))
    assert already(read_target("python", tiny), broken) is None
    versions["modularbase-pack-sql"] = "1.0"  # offers no sql_tips
    assert already(read_target("sql_tips", tiny), tiny) is None


@pytest.fixture
def got(tmp_path):
    """Find a target among offered wheels; no index answers for anything else."""

    def call(text, offered, **more):
        fake = FakePip(offered, **more)
        folder = tmp_path / "scratch"
        folder.mkdir(exist_ok=True)
        return find(read_target(text, Catalog()), Pip(runner=fake), Sources(), folder), fake

    return call


def test_a_pack_id_finds_the_distribution_that_offers_it(got, tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON])
    found, fake = got("python_code", {DISTRIBUTION: wheel})
    assert [words[-1] for words in fake.asked] == ["modularbase-pack-python-code", DISTRIBUTION]
    assert (found.wheel.distribution, found.wheel.version, found.direct) == (DISTRIBUTION, "1.0.0", None)
    assert [one.id for one in found.wheel.packs] == ["python_code"]


def test_a_guessed_distribution_without_that_pack_is_not_taken(got, tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON])
    with pytest.raises(PackError, match="looked for modularbase-pack-python-tips and modularbase-pack-python"):
        got("python_tips", {DISTRIBUTION: wheel})


def test_an_index_out_of_reach_is_waited_for_once(got):
    with pytest.raises(NotOffered, match="out of reach") as failed:
        got("python_code", {}, offline=True)
    assert failed.value.unreachable


def test_a_link_may_offer_what_the_index_out_of_reach_cannot(got, tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON])
    _, fake = got("python_code", {DISTRIBUTION: wheel}, offline=True)
    assert ["--retries" in words for words in fake.asked] == [False, True]


def test_a_wheel_is_installed_from_where_it_lies(got, tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON])
    found, fake = got(str(wheel), {})
    assert (found.direct, fake.asked) == (str(wheel), [])


def test_an_address_is_installed_with_the_digest_that_was_looked_into(got, tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON])
    url = f"https://example.org/{wheel.name}"
    found, _ = got(url, {url: wheel})
    assert found.direct == f"{url}#sha256={found.wheel.sha256}"


def test_exactly_what_was_looked_into_is_installed_after_its_dependencies(got, tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON], requires=["modularbase", "absent-one>=2"])
    found, fake = got("python", {DISTRIBUTION: wheel})
    install([found], Pip(runner=fake), Sources(index_url="http://a"))
    first, second = fake.commands("install")
    assert first[-2:] == ["--", "absent-one>=2"]
    assert "http://a" in first
    assert second[-2:] == ["--", f"{DISTRIBUTION}==1.0.0"]
    assert {"--no-deps", "--no-index", "--force-reinstall"} < set(second)
    assert second[second.index("--find-links") + 1] == str(found.wheel.path.parent)


def test_a_dependency_that_cannot_be_had_stops_it_before_a_pack_changes(got, tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON], requires=["absent-one"])
    found, fake = got("python", {DISTRIBUTION: wheel})
    fake.answers["install"] = Outcome(1, BROKEN)
    with pytest.raises(PipError):
        install([found], Pip(runner=fake), Sources())
    assert len(fake.commands("install")) == 1


def test_dependencies_follow_markers_extras_and_what_comes_along(got, tmp_path):
    requires = ["modularbase-pack-sql>=1", "gone; python_version < '3'", "more; extra == 'all'", "modularbase[x]"]
    wheels = {
        DISTRIBUTION: write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON], requires=requires),
        "modularbase-pack-sql": write_wheel(tmp_path, "modularbase-pack-sql", packs=[SQL]),
    }
    python, sql = got("python", wheels)[0], got("sql", wheels)[0]
    assert needed([python, sql]) == ["modularbase[x]"]
    assert needed([python]) == ["modularbase-pack-sql>=1", "modularbase[x]"]
    extra = replace(python, target=Target("python", extras=frozenset({"all"})))
    assert needed([extra, sql]) == ["more", "modularbase[x]"]
    old = replace(sql, wheel=replace(sql.wheel, version="0.1"))
    with pytest.raises(PackError, match=r"needs modularbase-pack-sql>=1, but 0\.1 was asked for"):
        needed([python, old])


def looked(tmp_path, wheel):
    (tmp_path / "unpacked").mkdir(exist_ok=True)
    return look_into(wheel, tmp_path / "unpacked")


def test_packs_are_checked_against_the_installed_base(tmp_path, tiny):
    wheel = looked(tmp_path, write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON]))
    assert check_fit([wheel], tiny, None) == []
    foreign = replace(PYTHON, base="other-base")
    wheel = looked(tmp_path, write_wheel(tmp_path, DISTRIBUTION, packs=[foreign]))
    with pytest.raises(PackIncompatible, match="was made for base 'other-base', not 'tiny-base'"):
        check_fit([wheel], tiny, None)
    (untold,) = check_fit([wheel], Catalog(), None)
    assert "no base is installed yet" in untold


def test_a_base_that_comes_along_is_the_one_that_counts(tmp_path, tiny):
    newer = replace(manifest("tiny-base", "base", BASE), version="2.0.0")
    made = replace(PYTHON, base_compatibility=("2.0",))
    wheel = looked(tmp_path, write_wheel(tmp_path, "modularbase-both", packs=[newer, made]))
    assert check_fit([wheel], tiny, None) == []
    alone = looked(tmp_path, write_wheel(tmp_path, DISTRIBUTION, packs=[made]))
    with pytest.raises(PackIncompatible, match="upgrade the pack or the base"):
        check_fit([alone], tiny, None)


def test_a_wheel_without_our_entry_points_is_no_pack(tmp_path):
    with pytest.raises(PackError, match=r"other-1\.0\.0-py3-none-any\.whl is no pack: it has no entry point"):
        looked(tmp_path, write_wheel(tmp_path, "other", group="console_scripts"))


def test_a_plugin_of_code_alone_is_a_wheel_without_packs(tmp_path):
    assert looked(tmp_path, write_wheel(tmp_path, "modularbase-pack-echo")).packs == ()


def corrupt_weights(tmp_path):
    return write_wheel(
        tmp_path, DISTRIBUTION, packs=[PYTHON], replaced={f"modularbase_pack_python/python_code/{WEIGHTS_FILE}": b"x"}
    )


def test_unsound_packs_are_told_by_the_wheels_name(tmp_path):
    with pytest.raises(
        WeightsError, match=r"^modularbase_pack_python-1.*whl: modularbase_pack_python/python_code/model"
    ):
        looked(tmp_path, corrupt_weights(tmp_path))
    without = write_wheel(tmp_path / "b", DISTRIBUTION, packs=[PYTHON], left_out=[WEIGHTS_FILE])
    with pytest.raises(ManifestError, match=r"model\.safetensors is missing"):
        look_into(without, tmp_path / "elsewhere")


def test_weights_that_are_to_be_downloaded_may_be_absent(tmp_path):
    apart = replace(PYTHON, downloads={WEIGHTS_FILE: "https://example.org/w"})
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[apart], left_out=[WEIGHTS_FILE])
    assert looked(tmp_path, wheel).packs[0].downloads == apart.downloads


def test_a_pack_cannot_lead_out_of_its_wheel(tmp_path):
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON])
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("modularbase_pack_python/python_code/../../../out.json", b"{}")
    with pytest.raises(PackError, match="which leads out of it"):
        looked(tmp_path, wheel)
    assert not (tmp_path / "out.json").exists()


def test_two_packs_of_one_id_in_a_wheel_are_refused(tmp_path):
    both = [PYTHON, replace(PYTHON, name="again")]
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=both[:1])
    with zipfile.ZipFile(wheel) as archive:
        copies = {
            name.replace("/python_code/", "/again/"): archive.read(name)
            for name in archive.namelist()
            if "/python_code/" in name
        }
    wheel = write_wheel(tmp_path, DISTRIBUTION, packs=both[:1], replaced=copies)
    with pytest.raises(PackError, match="several packs with the id 'python_code'"):
        looked(tmp_path, wheel)


def test_no_damage_to_a_wheel_is_more_than_one_sentence(tmp_path):
    whole = write_wheel(tmp_path, DISTRIBUTION, packs=[PYTHON]).read_bytes()
    damaged = tmp_path / "damaged-1.0-py3-none-any.whl"
    told = set()
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            damaged.write_bytes(content)
            try:
                look_into(damaged, tmp_path / "unpacked")
            except ModularBaseError as error:
                told.add(str(error))
    assert len(told) > 5
    assert not [text for text in told if "\n" in text or str(tmp_path) in text]
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr("x", json.dumps({}))
    with pytest.raises(PackError, match=r"is no wheel: it has 0 \.dist-info folders"):
        look_into(damaged, tmp_path / "unpacked")
