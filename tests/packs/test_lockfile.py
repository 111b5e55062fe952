"""What a lock says, that it survives writing, and how an installation is compared with it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_packs import catalog_of, write_tiny_set

from modularbase_core.errors import PackError
from modularbase_core.packs import lockfile
from modularbase_core.packs.lockfile import Locked, LockedPack, differences, lock, read_lock, write_lock

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
# what a TOML string can hold: any character but surrogates
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
PACKS = st.builds(
    LockedPack,
    id=TEXTS,
    version=TEXTS,
    files=st.dictionaries(TEXTS, DIGESTS, max_size=4).map(lambda files: tuple(sorted(files.items()))),
)
LOCKED = st.builds(
    Locked,
    name=st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)*", fullmatch=True),
    version=st.sampled_from(["1.0", "2.0.1rc1"]),
    packs=st.lists(PACKS, max_size=3).map(tuple),
    url=st.sampled_from(["", "https://example.org/x.whl#sha256=00"]),
)


@settings(max_examples=40, deadline=None)  # each writes a file for good
@given(st.lists(LOCKED, unique_by=lambda one: one.name, max_size=4).map(tuple))
def test_a_lock_is_read_as_it_was_written(tmp_path_factory, locked):
    path = tmp_path_factory.mktemp("lock") / "packs.lock"
    write_lock(path, locked)
    assert read_lock(path) == locked
    assert differences(locked, read_lock(path)) == {}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Four packs of a distribution that is said to be installed."""
    monkeypatch.setattr(lockfile, "_version", lambda name: "1.0.0")
    monkeypatch.setattr(lockfile, "_address", lambda name: "")
    return catalog_of(write_tiny_set(tmp_path))


def test_a_lock_holds_every_file_of_every_pack_as_it_is(tiny):
    (one,) = lock(tiny)
    assert (one.name, one.version, one.requirement) == ("tiny", "1.0.0", "tiny==1.0.0")
    assert [pack.id for pack in one.packs] == ["general_chat", "python_code", "tiny-base", "tiny-router"]
    python = dict(one.packs[1].files)
    assert set(python) == {"manifest.json", "model.safetensors", "routing.safetensors", "examples.json"}
    (tiny.find("python").pack.directory / "model.safetensors").write_bytes(b"changed")
    assert differences(lock(tiny), (one,)) == {
        "tiny": ["python_code/model.safetensors is another file than the locked one"]
    }


def test_a_pack_of_no_distribution_cannot_be_locked(tiny):
    homeless = replace(tiny, packs=(replace(tiny.packs[0], distribution=""),))
    with pytest.raises(PackError, match="belongs to no distribution"):
        lock(homeless)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda one: [], "tiny 1.0.0 is not installed"),
        (lambda one: [replace(one, version="2.0")], "tiny is 2.0, locked is 1.0.0"),
        (lambda one: [replace(one, packs=one.packs[1:])], "tiny 1.0.0 offers no pack 'general_chat' that can be used"),
        (
            lambda one: [one, replace(one, name="more")],
            "more 1.0.0 (general_chat, python_code, tiny-base, tiny-router)",
        ),
        (
            lambda one: [replace(one, packs=(*one.packs, replace(one.packs[0], id="new")))],
            "tiny offers 'new', which is not locked",
        ),
    ],
)
def test_each_difference_is_told(tiny, change, told):
    (one,) = lock(tiny)
    (lines,) = differences((one,), change(one)).values()
    assert lines[0].startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("schema = 2", "this version reads 1; upgrade"),
        ("", "schema is None"),
        ("schema = 1\ndistributions = []", r"unknown key 'distributions' \(did you mean 'distribution'\?\)"),
        ("schema = 1\ndistribution = 3", "must be a list of tables"),
        ("schema = 1\n[[distribution]]\nname = 'a'", "version is None; expected a string"),
        ("schema = 1\n[[distribution]]\nname = '-e'\nversion = '1'", "'-e' is no name of a distribution"),
        ("schema = 1\n[[distribution]]\nname = 'a'\nversion = '1; rm'", "which is none; lock again"),
        ("schema = 1\n[[distribution]]\nname = 'a'\nversion = '1'\nurl = 'file:///x'", "only http and https are taken"),
        ("schema = 1\n" + "[[distribution]]\nname = 'a'\nversion = '1'\n" * 2, "is there twice"),
        (
            "schema = 1\n[[distribution]]\nname = 'a'\nversion = '1'\n"
            "[[distribution.pack]]\nid = 'a'\nversion = '1'\n[distribution.pack.files]\nx = 'short'",
            "must be SHA-256 digests",
        ),
        ("= not TOML", "is not TOML"),
    ],
)
def test_a_lock_that_is_none_is_one_sentence(tmp_path, text, told):
    path = tmp_path / "packs.lock"
    path.write_text(text)
    with pytest.raises(PackError, match=f"packs.lock.*{told}"):
        read_lock(path)


def test_a_lock_that_cannot_be_read_or_written_is_one_sentence(tmp_path):
    with pytest.raises(PackError, match="does not exist; write one"):
        read_lock(tmp_path / "packs.lock")
    with pytest.raises(PackError, match="cannot be read"):
        read_lock(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(PackError, match="cannot be written"):
        write_lock(tmp_path / "file" / "packs.lock", [])
