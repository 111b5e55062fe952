import hashlib
from pathlib import Path

import pytest
from kept_sessions import IDS, held, left, lines_of, page, tokenizer

from modularbase_core.context.cold import ColdStore
from modularbase_core.errors import SessionError
from modularbase_core.host.session_export import export_session
from modularbase_core.host.session_files import delete_session, list_sessions
from modularbase_core.host.session_import import import_session
from modularbase_core.host.transcript import transcript


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_exported_deleted_and_imported_is_the_same_session(config, catalog, kept, tmp_path, name):
    before, file, told = held(kept), tmp_path / name, []
    exported = export_session(config, "garden", file, progress=lambda *step: told.append(step))
    assert (exported.tokens, exported.pages, exported.faults) == (len(IDS), len(before[0]), ())
    assert told[-1][1] == told[-1][2] == sum(len(one[-1]) for one in before[0])
    delete_session(config, "garden")
    assert left(config) == []
    told.clear()
    imported = import_session(config, file, catalog=catalog, progress=lambda *step: told.append(step))
    assert (imported.name, imported.tokens, imported.base_installed) == ("garden", len(IDS), True)
    assert told[-1][1] <= told[-1][2] == file.stat().st_size
    assert held(kept) == before
    assert left(config) == ["garden"]
    assert kept.stat().st_mode & 0o777 == 0o700
    again = tmp_path / f"again-{name}"
    export_session(config, "garden", again)
    assert again.read_bytes() == file.read_bytes()


def test_the_lines_are_those_of_the_documentation(config, kept, tmp_path):
    export_session(config, "garden", tmp_path / "out")
    header, *pages, last = lines_of(tmp_path / "out")
    assert list(header) == ["format", "version", "name", "base", "state", "pages", "tokens"]
    assert (header["format"], header["version"], header["name"]) == ("modularbase-session", 1, "garden")
    assert header["state"]["pending"] == IDS[-1:]
    assert list(pages[0]) == ["index", "form", "tokens", "importance", "pinned", "bounds", "payload"]
    assert [one for page in pages for one in page["tokens"]] == IDS[:-1]
    *before, _ = (tmp_path / "out").read_bytes().splitlines(keepends=True)
    assert last == {"pages": len(pages), "sha256": hashlib.sha256(b"".join(before)).hexdigest()}
    documented = (Path(__file__).parents[2] / "docs/sessions.md").read_text(encoding="utf-8")
    for key in (*header, *pages[0], *last, *header["base"], *header["state"]):
        assert f"`{key}`" in documented


def test_an_existing_file_is_replaced_only_by_force(config, kept, tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    with pytest.raises(SessionError, match="exists; name another file"):
        export_session(config, "garden", file)
    assert file.read_text() == "mine"
    export_session(config, "garden", file, force=True)
    assert lines_of(file)[0]["name"] == "garden"


def test_an_export_that_fails_leaves_no_file(config, kept, tmp_path):
    def stop(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_session(config, "garden", tmp_path / "out", progress=stop)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SessionError, match="folder is no file that can be replaced"):
        export_session(config, "garden", tmp_path / "folder", force=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "sessions"]


def test_an_export_into_a_folder_that_cannot_be_written_is_one_sentence(config, kept, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SessionError, match=r"out cannot be written \("):
        export_session(config, "garden", tmp_path / "file" / "out")


def test_a_damaged_page_is_left_out_and_told(config, catalog, kept, tmp_path):
    payload = held(kept)[0][1][-1]
    content = (kept / "data.mdb").read_bytes()
    at = content.index(payload[:64])
    with (kept / "data.mdb").open("r+b") as file:
        file.seek(at)
        file.write(bytes([payload[0] ^ 1]))
    exported = export_session(config, "garden", tmp_path / "out")
    assert exported.faults == ("session 'garden': page 1 (tokens 16 to 31) is damaged on disk and is dropped",)
    assert import_session(config, tmp_path / "out", "copy", catalog=catalog).pages == exported.pages
    with ColdStore.open(config.sessions_dir / "copy", limit_bytes=1 << 26) as store:
        assert 1 not in store
        assert "[... 16 tokens that are no longer kept ...]" in transcript(store, tokenizer())[0].text


def test_pages_after_a_gap_keep_their_numbers(config, catalog, tmp_path):
    with ColdStore.open(config.sessions_dir / "gap", limit_bytes=1 << 26) as store:
        store.put([page(0, IDS[:16], "int8"), page(5, IDS[80:96], "int8")])
    assert list_sessions(config)[0].tokens == 96
    export_session(config, "gap", tmp_path / "out")
    import_session(config, tmp_path / "out", "copy", catalog=catalog)
    assert held(config.sessions_dir / "copy") == held(config.sessions_dir / "gap")
