"""`modularbase pack fetch`; how files are fetched is tested in packs/test_fetch.py."""

from modularbase_core.sdk.manifest import WEIGHTS_FILE


def test_fetch_brings_what_is_missing(run, site, tmp_path, monkeypatch):
    assert run("pack", "fetch").out == "nothing to fetch: every file is here\n"
    one, content = site.add_apart()
    monkeypatch.setattr(
        "modularbase_core.packs.fetch.fetch", lambda download, folder, progress: site.keep(one, content)
    )
    assert run("pack", "fetch", "apart").out == f"fetched apart/{WEIGHTS_FILE}\n"


def test_fetch_that_fails_is_a_sentence_and_an_exit_code(run, site, tmp_path, monkeypatch):
    site.add_apart()
    monkeypatch.setattr("modularbase_core.packs.transfer.ATTEMPTS", 1)
    done = run("pack", "fetch")
    assert (done.code, done.out) == (1, "")
    assert "cannot be fetched from http://127.0.0.1:9/w (Connection refused)" in done.err
