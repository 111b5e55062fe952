import os
import shutil

import pytest
from kept_sessions import IDS, keep, left

from modularbase_core.context.cold import ColdStore
from modularbase_core.errors import InputError, SessionError, SessionInUse
from modularbase_core.host.session_export import export_session
from modularbase_core.host.session_files import delete_session, find_session, list_sessions
from modularbase_core.host.session_import import import_session


def test_nothing_is_listed_where_nothing_was_kept(config):
    assert list_sessions(config) == []


def test_sessions_are_listed_with_the_last_used_first(config, catalog, kept):
    keep(config.sessions_dir / "河", catalog, IDS[:41])
    os.utime(kept / "data.mdb", (1000, 1000))
    first, second = list_sessions(config)
    assert (first.name, first.tokens) == ("河", 41)
    assert (second.name, second.tokens, second.used, second.problem) == ("garden", len(IDS), 1000, "")
    assert second.base.id == "tiny-base"
    assert second.bytes_on_disk > 10_000
    assert list_sessions(config)[1].used == 1000  # looking is no use


def test_what_is_no_session_is_not_listed(config, kept):
    (config.sessions_dir / "notes").mkdir()
    (config.sessions_dir / "file").write_text("x")
    shutil.copytree(kept, config.sessions_dir / ".import-1")
    assert [one.name for one in list_sessions(config)] == ["garden"]


def test_a_session_in_use_is_listed_and_stays(config, kept, tmp_path):
    with ColdStore.open(kept, limit_bytes=1 << 26):
        (one,) = list_sessions(config)
        assert (one.in_use, one.tokens, one.problem) == (True, None, "")
        with pytest.raises(SessionInUse, match="is open in this process"):
            delete_session(config, "garden")
        with pytest.raises(SessionInUse, match="is open in this process"):
            export_session(config, "garden", tmp_path / "out")
    assert left(config) == ["garden"]
    assert not (tmp_path / "out").exists()


def test_a_damaged_session_is_listed_with_its_sentence_and_can_be_deleted(config, kept):
    with (kept / "data.mdb").open("r+b") as file:
        file.write(bytes(8192))
    (one,) = list_sessions(config)
    assert one.tokens is None
    assert "is damaged on disk" in one.problem
    delete_session(config, "garden")
    assert left(config) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../garden", "a/b", ".hidden", "/etc", "a\0b", "x" * 65, "a b", "-rf"])
def test_what_cannot_be_a_name_is_refused(config, catalog, kept, name, tmp_path):
    export_session(config, "garden", tmp_path / "out")
    for call in (
        lambda: find_session(config, name),
        lambda: delete_session(config, name),
        lambda: export_session(config, name, tmp_path / "other"),
        lambda: import_session(config, tmp_path / "out", name, catalog=catalog),
    ):
        with pytest.raises(InputError, match="a session cannot be called"):
            call()
    assert left(config) == ["garden"]


def test_an_unknown_name_is_answered_with_the_nearest(config, kept):
    with pytest.raises(SessionError, match=r"no session 'gardn' in .* \(did you mean 'garden'\?\)"):
        delete_session(config, "gardn")


def test_a_link_is_not_deleted_by_half(config, kept, tmp_path):
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SessionError, match="is a link"):
        delete_session(config, "garden")
    assert (tmp_path / "elsewhere" / "data.mdb").exists()
