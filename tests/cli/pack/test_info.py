"""`modularbase pack info`, and packs whose weights are yet to come, as each command tells them."""

import json
import re

from tiny_packs import PACK, manifest, write_pack

from modularbase_core.sdk.manifest import WEIGHTS_FILE


def test_every_command_has_help(run):
    done = run("pack", "--help")
    assert done.code == 0
    for name in ("build", "check", "export", "fetch", "info", "install", "list", "lock", "pin", "remove", "verify"):
        assert f"\n  {name} " in done.out
        assert run("pack", name, "--help").code == 0
    assert "did you mean 'install'?" in run("pack", "instal").err


def test_info_tells_what_a_pack_is_and_whether_it_runs(run, site):
    done = run("pack", "info", "python")
    assert done.code == 0
    assert re.match(r"python_code  1\.0\.0, domain, 0\.\d MB\n", done.out)
    assert re.search(r"can run +yes\n", done.out)
    assert "examples:\n  hi\n" in done.out
    value = json.loads(run("pack", "info", "python", "--json").out)
    assert (value["id"], value["refused"], value["fetched"]) == ("python_code", None, True)
    assert (value["distribution"], value["distribution_version"]) == (site.python, "1.0.0")
    assert "no pack 'pithon' is installed (did you mean 'python'?)" in run("pack", "info", "pithon").err


def test_info_says_why_a_pack_does_not_fit(run, site, tmp_path):
    site.add(write_pack(tmp_path / "foreign", manifest("foreign", "domain", PACK, base="other-base")), "x")
    assert "was made for base 'other-base', not 'tiny-base'" in run("pack", "info", "foreign").out
    for resident in ("tiny-base", "tiny-router", "general_chat"):
        assert json.loads(run("pack", "info", resident, "--json").out)["refused"] is None


def test_info_prints_the_model_card(run, site):
    (site.directories["python_code"] / "README.md").write_text("# What it is for\n")
    assert run("pack", "info", "python", "--card").out == "# What it is for\n"
    done = run("pack", "info", "general_chat", "--card")
    assert (done.code, done.out) == (1, "")
    assert "brings no model card" in done.err
    assert re.search(r"model card +none\n", run("pack", "info", "general_chat").out)


def test_weights_that_are_yet_to_come_are_told_with_what_to_do(run, site, tmp_path):
    one, content = site.add_apart()
    told = "run `modularbase pack fetch apart`"
    assert f"refused: pack 'apart' lacks {WEIGHTS_FILE}, yet to be downloaded; {told}" in run("pack", "list").out
    assert told in run("pack", "info", "apart").out
    assert told in run("pack", "verify", "apart", "--no-run").out
    assert told in run("pack", "export", "apart", str(tmp_path / "out")).err
    site.keep(one, content)
    assert "refused" not in run("pack", "list").out
    assert re.search(r"downloads +fetched\n", run("pack", "info", "apart").out)
    assert run("pack", "verify", "apart", "--no-run").code == 0
