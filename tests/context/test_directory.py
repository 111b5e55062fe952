import os
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from cold_pages import in_a_child, opened, written

from modularbase_core.context.directory import FORMAT_KEY
from modularbase_core.context.record import seal
from modularbase_core.errors import SessionError, SessionInUse


def test_one_process_at_a_time_and_this_one_once(tmp_path: Path) -> None:
    with opened(tmp_path / "talk"):
        with pytest.raises(SessionInUse, match="session 'talk' is open in this process; close it there") as refused:
            opened(tmp_path / "talk")
        assert (refused.value.name, refused.value.pid) == ("talk", os.getpid())
        child = in_a_child("opened(Path(sys.argv[1]))", tmp_path / "talk")
        problem = child.communicate()[1]
        assert f"session 'talk' is open in another process (pid {os.getpid()}); close it there or use" in problem
    written(tmp_path / "talk", 1)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    child = in_a_child("opened(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()", tmp_path / "talk")
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    with pytest.raises(SessionInUse, match=rf"another process \(pid {child.pid}\)") as refused:
        opened(tmp_path / "talk")
    assert refused.value.pid == child.pid
    (tmp_path / "talk" / "lock").write_bytes(b"")
    with pytest.raises(SessionInUse, match=r"another process \(pid unknown\)") as refused:
        opened(tmp_path / "talk")
    assert refused.value.pid is None
    child.kill()
    child.communicate()
    opened(tmp_path / "talk").close()


def other_files(directory: Path) -> None:
    directory.mkdir()
    (directory / "letter.txt").write_text("hello")


def no_lmdb(directory: Path) -> None:
    directory.mkdir()
    (directory / "data.mdb").write_bytes(b"hello" * 4000)


def cut_short(directory: Path) -> None:
    written(directory, 40)
    os.truncate(directory / "data.mdb", 100_000)


def of_another_program(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=2) as env:
        env.open_db(b"things")


def of_another_release(directory: Path) -> None:
    written(directory, 2)
    with lmdb.open(str(directory), max_dbs=3) as env, env.begin(write=True) as txn:
        txn.put(FORMAT_KEY, seal(FORMAT_KEY, b"7"), db=env.open_db(b"meta", txn=txn))


def with_a_format_that_is_damaged(directory: Path) -> None:
    written(directory, 2)
    with lmdb.open(str(directory), max_dbs=3) as env, env.begin(write=True) as txn:
        txn.put(FORMAT_KEY, b"1234 ", db=env.open_db(b"meta", txn=txn))


def below_a_file(directory: Path) -> None:
    directory.parent.rmdir()
    directory.parent.write_text("a file")


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (other_files, "is a directory but no session; use another name"),
        (no_lmdb, "session 'talk' is damaged on disk .*; bring .* back from a copy, or delete it and begin anew"),
        (cut_short, "session 'talk' is damaged on disk .*beyond EOF"),
        (of_another_program, "holds another program's data, no session"),
        (of_another_release, "'talk' is written in format 7 but this release reads 1; open it with the release"),
        (with_a_format_that_is_damaged, "session 'talk' is damaged on disk"),
        (below_a_file, "session 'talk' cannot be kept in .*Not a directory"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_sentence(tmp_path: Path, made: Callable[..., None], told: str) -> None:
    directory = tmp_path / "all" / "talk"
    directory.parent.mkdir()
    made(directory)
    for _ in range(2):  # and the refused one is not locked
        with pytest.raises(SessionError, match=told):
            opened(directory)


def test_a_session_that_is_not_there_is_made_only_when_wanted(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"there is no session 'talk' in .*; check its name"):
        opened(tmp_path / "talk", create=False)
    assert not (tmp_path / "talk").exists()


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # what stops root too, who may write to any folder
    with pytest.raises(SessionError, match=r"session 'talk' cannot be kept in .*Not a directory"):
        opened(tmp_path / "file" / "talk")


def test_what_was_killed_before_its_first_write_is_made_anew(tmp_path: Path) -> None:
    for name in ("lock", "lock.mdb", "data.mdb"):
        (tmp_path / name).touch()
    written(tmp_path, 1)
