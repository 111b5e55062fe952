import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_sessions import IDS, held, keep, left, lines_of
from tiny_packs import BASE, catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.context.codec import encoded_bytes
from modularbase_core.context.cold import ColdStore
from modularbase_core.errors import InputError, ModularBaseError, SessionError
from modularbase_core.host import session_files, session_import
from modularbase_core.host.conversations import shapes_of
from modularbase_core.host.session_export import export_session
from modularbase_core.host.session_files import delete_session, list_sessions
from modularbase_core.host.session_import import import_session
from modularbase_core.host.transcript import reading_base
from modularbase_core.packs.catalog import Catalog


def rewrite(file, change, *, sealed=True):
    """Write a file anew with its lines changed, with a checksum that fits them."""
    lines = lines_of(file)
    change(lines)
    written = [json.dumps(line).encode() + b"\n" for line in lines]
    if sealed:
        last = {**lines[-1], "sha256": hashlib.sha256(b"".join(written[:-1])).hexdigest()}
        written[-1] = json.dumps(last).encode() + b"\n"
    file.write_bytes(b"".join(written))


def test_a_name_that_is_taken_is_refused_and_another_one_is_not(config, catalog, kept, tmp_path):
    export_session(config, "garden", tmp_path / "out")
    with pytest.raises(InputError, match=r"there is a session 'garden' in .* already"):
        import_session(config, tmp_path / "out", catalog=catalog)
    import_session(config, tmp_path / "out", "other", catalog=catalog)
    assert held(config.sessions_dir / "other") == held(kept)


def test_a_session_that_was_begun_meanwhile_is_not_replaced(config, catalog, kept, tmp_path):
    export_session(config, "garden", tmp_path / "out")
    before = held(kept)

    def begin(*step):
        if not (config.sessions_dir / "late").exists():
            shutil.copytree(kept, config.sessions_dir / "late")

    with pytest.raises(InputError, match="there is a session 'late'"):
        import_session(config, tmp_path / "out", "late", catalog=catalog, progress=begin)
    assert held(config.sessions_dir / "late") == before
    assert left(config) == ["garden", "late"]


def test_without_its_base_a_session_comes_in_and_is_told_to_wait(config, catalog, kept, tmp_path):
    export_session(config, "garden", tmp_path / "out")
    imported = import_session(config, tmp_path / "out", "other", catalog=Catalog())
    assert (imported.base.id, imported.base_installed) == ("tiny-base", False)
    assert held(config.sessions_dir / "other") == held(kept)
    with ColdStore.open(kept, limit_bytes=1 << 26) as store, pytest.raises(SessionError, match="is not installed"):
        reading_base(replace(catalog, packs=catalog.packs[1:]), config, store)


def drop(key):
    return lambda lines: lines[1].pop(key)


def put(line, **fields):
    return lambda lines: lines[line].update(fields)


CHANGES = {
    "does not begin as an exported session does": put(0, format="other"),
    "it is in version 2 of the format": put(0, version=2),
    "the name is 3": put(0, name=3),
    "the base is 3": put(0, base=3),
    "the base's version is None": put(0, base={"id": "a", "version": None, "digest": ""}),
    "the base's id is": put(0, base={"id": "a\x1b[2J", "version": "1", "digest": ""}),
    "the state is \\[\\]": put(0, state=[]),
    "the state's tokens is None": put(0, state={}),
    "the state's pending, a token id, is -1": put(0, state={"tokens": 3, "pending": [-1]}),
    "the state's recalls hold 3": put(0, state={"tokens": 3, "recalls": [3]}),
    "a recalled page is -1": put(0, state={"tokens": 3, "recalls": [[0, [-1]]]}),
    "recalled pages were found by 3": put(0, state={"tokens": 3, "recalled": [[0, 3]]}),
    "pages is True": put(0, pages=True),
    "line 2: it lacks bounds": drop("bounds"),
    "line 2: it has the unknown key 'more'": put(1, more=1),
    "line 2: the form is 'int2'": put(1, form="int2"),
    "line 2: it has 17 tokens, not 1 to 16": put(1, tokens=[1] * 17),
    "line 2: it has 0 tokens": put(1, tokens=[]),
    "line 2: the importance is 'high'": put(1, importance="high"),
    "line 2: pinned is 1": put(1, pinned=1),
    "line 2: the payload is '\\?', not base64": put(1, payload="?"),
    "line 2: page 0 \\(int4\\) takes .* bytes, not": put(1, form="int4"),
    "line 2: the key bounds of page 0 take 3 bytes": put(1, bounds="AAAA"),
    "line 2: the index is -1": put(1, index=-1),
    "line 3: page 0 stands behind page 0": put(2, index=0),
    "line 3: a page follows one that is not full": put(1, tokens=[1]),
    "pages where 1 are promised": put(0, pages=1),
    "where 1 are promised": put(0, tokens=1),
    "promised; export the session again": put(-1, pages=1),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_what_does_not_fit_is_refused_with_its_reason(config, catalog, kept, tmp_path, reason):
    export_session(config, "garden", tmp_path / "out")
    rewrite(tmp_path / "out", CHANGES[reason])
    with pytest.raises(SessionError, match=reason) as refused:
        import_session(config, tmp_path / "out", "other", catalog=catalog)
    assert str(refused.value).startswith(f"{tmp_path / 'out'} cannot be imported: ")
    assert "\n" not in str(refused.value)
    assert left(config) == ["garden"]


def test_without_the_base_pages_must_be_as_large_as_each_other(config, catalog, kept, tmp_path):
    export_session(config, "garden", tmp_path / "out")
    rewrite(tmp_path / "out", put(6, payload="AAAA"))  # the second int8 page
    with pytest.raises(SessionError, match=f"takes 3 bytes, not {encoded_bytes(shapes_of(BASE), 'int8')}"):
        import_session(config, tmp_path / "out", "other", catalog=Catalog())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short in line 1"),
        (b"hello\n", "it is not JSON|cannot be imported"),
        (b"[]\n", "it is no JSON object"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"\x1f\x8bnothing", "cut short or damaged"),
        (b"\x00" * 100, "cut short in line 1"),
    ],
)
def test_what_is_no_session_at_all_is_refused(config, catalog, tmp_path, content, reason):
    (tmp_path / "out").write_bytes(content)
    with pytest.raises(SessionError, match=reason):
        import_session(config, tmp_path / "out", catalog=catalog)
    assert left(config) == []


def test_a_file_that_cannot_be_read_is_told(config, catalog, tmp_path):
    with pytest.raises(SessionError, match="does not exist"):
        import_session(config, tmp_path / "none", catalog=catalog)
    with pytest.raises(SessionError, match="cannot be read"):
        import_session(config, tmp_path, catalog=catalog)


@pytest.mark.parametrize("name", ["out", "out.gz"])
def test_a_session_may_come_through_a_pipe(config, catalog, kept, tmp_path, name):
    export_session(config, "garden", tmp_path / name)
    pipe, told = tmp_path / "pipe", []
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"cat '{tmp_path / name}' > '{pipe}'"]):
        import_session(config, pipe, "other", catalog=catalog, progress=lambda *step: told.append(step))
    assert held(config.sessions_dir / "other") == held(kept)
    assert told[-1] == ("importing pipe", 0, 0)


def test_a_line_without_an_end_does_not_fill_the_memory(config, catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(session_import, "LONGEST_LINE", 1000)
    (tmp_path / "out").write_bytes(b"x" * 5000)
    with pytest.raises(SessionError, match="line 1 is longer"):
        import_session(config, tmp_path / "out", catalog=catalog)


def test_what_takes_more_than_a_session_may_is_refused(config, catalog, tmp_path):
    keep(config.sessions_dir / "long", catalog, IDS * 12)
    export_session(config, "long", tmp_path / "out")
    before = held(config.sessions_dir / "long")
    small = replace(config, session_bytes=1 << 20)
    with pytest.raises(SessionError, match="session 'other' takes more than the 1 MiB that a session may"):
        import_session(small, tmp_path / "out", "other", catalog=catalog)
    assert left(config) == ["long"]
    import_session(config, tmp_path / "out", "other", catalog=catalog)
    assert held(config.sessions_dir / "other") == before


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_packs):
    """An exported session of three pages, plain and packed, and where it may be imported."""
    folder = tmp_path_factory.mktemp("flips")
    config = EngineConfig(sessions_dir=folder / "sessions", session_bytes=1 << 26)
    catalog = catalog_of(tiny_packs)
    keep(config.sessions_dir / "short", catalog, IDS[:40])
    plain, packed = folder / "out", folder / "out.gz"
    export_session(config, "short", plain)
    export_session(config, "short", packed)
    return config, catalog, plain, packed


few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(data=st.data())
def test_a_flipped_bit_is_refused(exported, data):
    config, catalog, plain, _ = exported
    content = bytearray(plain.read_bytes())
    edges = st.sampled_from([*range(300), *range(len(content) - 120, len(content))])
    content[data.draw(edges | st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = plain.with_name("flipped")
    flipped.write_bytes(content)
    with pytest.raises(ModularBaseError) as refused:
        import_session(config, flipped, "other", catalog=catalog)
    assert "\n" not in str(refused.value)
    assert left(config) == ["short"]


@few
@given(data=st.data())
def test_a_flipped_bit_of_a_packed_file_is_refused_or_changes_nothing(exported, data):
    config, catalog, _, packed = exported
    content = bytearray(packed.read_bytes())
    content[data.draw(st.integers(0, 20) | st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = packed.with_name("flipped.gz")
    flipped.write_bytes(content)
    with suppress(SessionError):
        import_session(config, flipped, "other", catalog=catalog)
        assert held(config.sessions_dir / "other") == held(config.sessions_dir / "short")
        delete_session(config, "other")
    assert left(config) == ["short"]


@few
@given(data=st.data())
def test_a_file_that_is_cut_short_is_refused(exported, data):
    config, catalog, *files = exported
    content = data.draw(st.sampled_from(files)).read_bytes()
    cut = files[0].with_name("cut")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(SessionError, match="cannot be imported"):
        import_session(config, cut, "other", catalog=catalog)
    assert left(config) == ["short"]


def test_a_file_that_goes_on_is_refused(exported):
    config, catalog, plain, packed = exported
    for file, more in ((plain, b"\n"), (packed, gzip.compress(b"{}\n"))):
        longer = file.with_name("longer")
        longer.write_bytes(file.read_bytes() + more)
        with pytest.raises(SessionError, match="goes on after its last line"):
            import_session(config, longer, "other", catalog=catalog)


KILLED = """
import os, sys
from pathlib import Path
from modularbase_core.config import EngineConfig
from modularbase_core.host import session_import
from modularbase_core.packs.catalog import Catalog
session_import._appear = lambda *paths: os._exit(9)
config = EngineConfig(sessions_dir=Path(sys.argv[1]))
session_import.import_session(config, Path(sys.argv[2]), "other", catalog=Catalog())
"""


def test_an_import_that_is_killed_leaves_nothing_listed_and_the_next_one_clears_it_away(
    config, catalog, kept, tmp_path
):
    export_session(config, "garden", tmp_path / "out")
    child = [sys.executable, "-c", KILLED, str(config.sessions_dir), str(tmp_path / "out")]
    assert subprocess.run(child).returncode == 9
    (config.sessions_dir / ".deleted-1").mkdir()
    assert len(left(config)) == 3
    assert [one.name for one in list_sessions(config)] == ["garden"]
    import_session(config, tmp_path / "out", "other", catalog=catalog)
    assert left(config) == ["garden", "other"]


def test_what_another_import_still_fills_is_not_cleared_away(config, kept):
    with ColdStore.open(config.sessions_dir / ".import-1", limit_bytes=1 << 26):
        session_files.sweep(config)
        assert left(config) == [".import-1", "garden"]
    session_files.sweep(config)
    assert left(config) == ["garden"]
