from dataclasses import replace

from kept_sessions import IDS, SAID, keep, pages_of, tokenizer
from tiny_packs import BASE

from modularbase_core.context.cold import ColdStore
from modularbase_core.host.memory_report import report_of
from modularbase_core.host.session_export import export_session
from modularbase_core.host.session_files import list_sessions
from modularbase_core.host.session_import import import_session
from modularbase_core.host.transcript import reading_base, transcript


def test_messages_are_read_back_with_their_places(config, catalog, kept):
    with ColdStore.open(kept, limit_bytes=1 << 26) as store:
        _, reads, note = reading_base(catalog, config, store)
        said = transcript(store, reads)
    assert note == ""
    assert [(one.role, one.text) for one in said] == [(one.role, one.content) for one in SAID]
    for one in said:
        assert reads.decode(IDS[one.token : one.token + one.tokens]) == one.text
    assert [one.whole for one in said] == [True] * 6  # the pending token is its end


def test_a_stale_state_does_not_count(config, catalog):
    keep(config.sessions_dir / "killed", catalog, IDS, tokens=7)
    with ColdStore.open(config.sessions_dir / "killed", limit_bytes=1 << 26) as store:
        assert not transcript(store, tokenizer())[-1].whole
        assert report_of(store, tokenizer(), BASE.window).recalled == ()


def test_another_version_of_the_base_reads_with_a_note(config, catalog, kept):
    old = catalog.packs[0]
    newer = replace(old, manifest=replace(old.manifest, version="1.1.0"))
    with ColdStore.open(kept, limit_bytes=1 << 26) as store:
        _, _, note = reading_base(replace(catalog, packs=(newer, *catalog.packs[1:])), config, store)
    assert note == (
        "session 'garden' was held with tiny-base 1.0.0 but tiny-base 1.1.0 is installed; its text may be wrong"
    )


def test_a_session_without_values_is_read_by_the_installed_base(config, catalog):
    folder = config.sessions_dir / "bare"
    with ColdStore.open(folder, limit_bytes=1 << 26) as store:
        store.put(pages_of(IDS), {"state": b"not JSON", "base": b"{}"})
        _, reads, _ = reading_base(catalog, config, store)
        assert len(transcript(store, reads)) == 6
    assert list_sessions(config)[0].base is None
    assert export_session(config, "bare", folder.parent / "out.gz").pages == -(-len(IDS) // 16)
    assert import_session(config, folder.parent / "out.gz", "other", catalog=catalog).base is None
