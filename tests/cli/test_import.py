import json

from qwen2_directory import write_checkpoint

from modularbase_core.sdk.testing import check_pack


def test_a_checkpoint_becomes_a_project_named_after_its_folder(run, tmp_path):
    write_checkpoint(tmp_path / "My-Qwen2")
    options = ("--understanding-layers", "1", "--fusion-layers", "1", "--dtype", "int8")
    done = run("import", str(tmp_path / "My-Qwen2"), "--out", str(tmp_path / "out"), *options)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("my-qwen2: 0.")
    assert lines[0].endswith("MB, Embedding, first 1 and last 1 layers, head.")
    assert lines[-2:] == [
        f"Next: pip install -e {tmp_path / 'out'}, then modularbase chat",
        'Where other bases are installed too, put base = "my-qwen2" into the settings.',
    ]
    assert "writing base (0/3)" in done.err
    for name in ("base", "router", "general_chat"):
        check_pack(tmp_path / "out/modularbase_my_qwen2" / name)


def test_int4_is_smaller_than_int8_and_its_readme_says_what_was_rounded(run, tmp_path):
    write_checkpoint(tmp_path / "in")
    sizes = {}
    for form in ("int8", "int4", "fp16"):
        out = tmp_path / form
        options = ("--name", "x", "--understanding-layers", "1", "--fusion-layers", "1", "--dtype", form, "--json")
        sizes[form] = json.loads(run("import", str(tmp_path / "in"), "--out", str(out), *options).out)["packs"]
        for name in ("base", "router", "general_chat"):
            check_pack(out / "modularbase_x" / name)
        rounding = "but for the rounding of its weights to " + form
        assert (rounding in (out / "README.md").read_text()) == (form != "fp16")
    for name in ("base", "general_chat"):
        assert sizes["int4"][name]["size_mb"] < sizes["int8"][name]["size_mb"] < sizes["fp16"][name]["size_mb"]


def test_what_was_made_is_told_as_json(run, tmp_path):
    write_checkpoint(tmp_path / "in")
    options = ("--name", "a-b", "--understanding-layers", "2", "--fusion-layers", "1", "--window", "128", "--json")
    done = run("import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options)
    told = json.loads(done.out)
    assert told["directory"] == str(tmp_path / "out")
    assert {folder: one["id"] for folder, one in told["packs"].items()} == {
        "base": "a-b",
        "router": "a-b-router",
        "general_chat": "a-b-chat",
    }
    manifest = json.loads((tmp_path / "out/modularbase_a_b/base/manifest.json").read_text())
    assert manifest["architecture"]["window"]["trained_tokens"] == 128
    assert done.err == ""


def test_what_is_no_checkpoint_is_one_line(run, tmp_path):
    done = run("import", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {tmp_path / 'none'} is no folder; name one that holds a checkpoint")
    assert done.err.count("\n") == 1


def test_a_name_that_no_pack_may_have_is_refused(run, tmp_path):
    write_checkpoint(tmp_path / "in")
    done = run("import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--name", "My_Model")
    assert (done.code, (tmp_path / "out").exists()) == (1, False)
    assert "the name is 'My_Model'; use at most 60 lower-case letters and digits, joined by -" in done.err
