from kept_sessions import IDS, keep, tokenizer
from tiny_packs import BASE

from modularbase_core.context.cold import ColdStore
from modularbase_core.host.memory_report import report_of


def test_the_report_counts_what_is_hot_and_cold_and_tells_what_came_back(config, kept):
    with ColdStore.open(kept, limit_bytes=1 << 26) as store:
        report = report_of(store, tokenizer(), BASE.window)
        assert (report.bytes_on_disk, report.limit_bytes) == (store.bytes_used, 1 << 26)
    assert report.tokens - 1 == sum(report.cold_tokens.values()) == len(IDS) - 1
    assert set(report.cold_tokens) == {"exact", "int8", "int4", "summary"}
    assert 16 < report.hot_tokens <= BASE.window.trained_tokens
    first, second = report.recalled
    assert (first.token, first.role, first.by) == (0, "user", "its words")
    assert "password" in first.text
    assert (second.token, second.by) == (32, "attention")
    assert second.role == "user"


def test_hot_tokens_never_exceed_what_there_is(config, catalog):
    keep(config.sessions_dir / "short", catalog, IDS[:21], recalls=[], recalled=[])
    with ColdStore.open(config.sessions_dir / "short", limit_bytes=1 << 26) as store:
        assert report_of(store, tokenizer(), BASE.window).hot_tokens == 20
