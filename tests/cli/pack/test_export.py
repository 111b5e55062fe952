"""`modularbase pack export`."""

from modularbase_core.sdk.manifest import WEIGHTS_FILE


def test_export_is_whole_and_overwrites_nothing(run, site, tmp_path):
    one, content = site.add_apart()
    site.keep(one, content)
    out = tmp_path / "out"
    assert run("pack", "export", "apart", str(out)).code == 0
    assert (out / WEIGHTS_FILE).read_bytes() == content
    assert run("pack", "check", str(out)).code == 0
    done = run("pack", "export", "apart", str(out))
    assert done.code == 1
    assert "exists; name a folder that does not" in done.err


def test_export_of_a_damaged_pack_leaves_nothing(run, site, tmp_path):
    (site.directories["python_code"] / WEIGHTS_FILE).write_bytes(b"short")
    done = run("pack", "export", "python", str(tmp_path / "out"))
    assert done.code == 1
    assert "nothing was exported" in done.err
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]
