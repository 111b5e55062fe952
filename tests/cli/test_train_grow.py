"""`modularbase train grow`, `align` and `distill` from the command line."""

import json
from pathlib import Path

import pytest
from chat_service import running
from tiny_packs import catalog_of

from modularbase_core.cli.train import growth
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train.decision import Decision
from modularbase_core.train.recipe import read_recipe

FEW = ("--tokens", "256", "--batch-tokens", "128", "--no-compile", "--threads", "1", "--logs", "none")
DISTILL = """\
name = "student"
stage = "distill"
base = "tiny-base"
start = "general_chat"
data = "."
tokens = 256
batch_tokens = 128
windows = [[1.0, 64]]
compile = false
[[mix]]
files = ["sums.jsonl"]
tokens = 1
[teacher]
kind = "openai"
url = "{url}"
model = "big"
key_variable = "THE_KEY"
prompts = 5
retries = 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_packs, cache):
    """Data, and the tiny packs installed."""
    lines = [json.dumps({"prompt": f"add {i} and {i}", "response": f"that is {2 * i}"}) for i in range(60)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of(tiny_packs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compiled(cache, monkeypatch, run):
    """Artefacts that other tests share."""
    monkeypatch.setenv("MODULARBASE_CACHE", str(cache))


def decided(monkeypatch, **told):
    decision = Decision(**{"counts": {"python_code": 9, "general_chat": 1}, "coherence": None, "notes": (), **told})
    monkeypatch.setattr("modularbase_core.cli.train.grow.decide_by_messages", lambda *more, **keys: decision)


def test_the_pack_that_routing_finds_learns_and_ships(run, folder, monkeypatch):
    decided(monkeypatch, pack="python_code", why="9 of 10 messages reach python_code already")
    done = run("train", "grow", "sums.jsonl", "--ship", "--quiet", *FEW)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[:4] == [
        "pack          messages  share",
        "python_code   9         90%",
        "general_chat  1         10%",
        "python_code learns them: 9 of 10 messages reach python_code already",
    ]
    assert lines[4].split() == ["perplexity", "before", "after"]
    assert lines[5].split()[0] == "new"
    assert lines[-1] == f"runs/python_code-grown/recipe.toml: {folder / 'runs/python_code-grown/pack'}"
    assert check_pack(folder / "runs/python_code-grown/pack").version == "1.1.0"
    written = read_recipe(folder / "runs/python_code-grown/recipe.toml")
    assert (written.stage, written.base, written.start) == ("grow", "tiny-base", "python_code")
    assert written.mix[0].files == (str(folder / "sums.jsonl"),)
    again = run("train", "grow", "sums.jsonl", "--ship", "--quiet", *FEW)
    assert again.out == done.out


def test_a_pack_that_is_named_learns_without_routing(run, folder, monkeypatch):
    monkeypatch.setattr("modularbase_core.cli.train.grow.decide_by_messages", None)
    done = run("train", "grow", "sums.jsonl", "--to", "python", "--replay", "sums.jsonl", "--json", *FEW)
    told = json.loads(done.out)
    assert told["decision"]["pack"] == "python_code"
    assert told["decision"]["why"] == "--to names it"
    assert told["steps"] == 2
    assert told["perplexity"].keys() == {"before", "after"}
    assert read_recipe(folder / "runs/python_code-grown/recipe.toml").replay[0].files == (str(folder / "sums.jsonl"),)


def test_a_decision_alone_trains_nothing(run, folder, monkeypatch):
    decided(monkeypatch, pack=None, coherence=0.8, why="they reach none", notes=("look at this",))
    done = run("train", "grow", "sums.jsonl", "--decide-only")
    assert done.out.splitlines()[-2:] == ["a new pack learns them: they reach none", "note: look at this"]
    told = json.loads(run("train", "grow", "sums.jsonl", "--decide-only", "--json").out)["decision"]
    assert (told["new"], told["coherence"]) == (True, 0.8)
    assert not (folder / "runs").exists()


def test_a_new_domain_asks_for_a_name(run, folder, monkeypatch):
    decided(monkeypatch, pack=None, coherence=0.8, why="they reach none")
    done = run("train", "grow", "sums.jsonl")
    assert done.code == 1
    assert done.err == (
        "error: they reach none, so they make a new pack; give its id with --new, or a pack with --to\n"
    )


def test_a_new_pack_is_a_project_that_learns_and_ships(run, folder, compiled):
    pytest.importorskip("cookiecutter")
    done = run("train", "grow", "sums.jsonl", "--new", "sums", "--ship", "--quiet", *FEW)
    assert done.code == 0, done.err
    project = folder / "modularbase-pack-sums"
    assert done.out.splitlines()[-1].startswith("modularbase-pack-sums/recipes/sums.toml: ")
    made = check_pack(project / "modularbase_pack_sums/sums")
    assert (made.id, made.base) == ("sums", "tiny-base")
    assert {"routing.safetensors", "examples.json", "model.safetensors"} <= made.files.keys()
    recipe = read_recipe(project / "recipes/sums.toml")
    assert (recipe.stage, recipe.start, recipe.replay_share) == ("grow", "general_chat", 0.0)
    again = run("train", "grow", "sums.jsonl", "--new", "sums", "--ship", "--quiet", *FEW)
    assert again.code == 0, again.err


def test_messages_are_routed_as_chat_routes_them(run, folder, compiled, tiny_packs, monkeypatch):
    seen = {}

    def decide(queries, given, background, **settings):
        seen.update(queries=queries, given=given, background=background, **settings)
        return Decision(counts={"python_code": 1}, pack="python_code", coherence=None, why="so it is")

    monkeypatch.setattr("modularbase_core.train.decision.decide", decide)
    monkeypatch.setattr(growth, "ROUTED_MESSAGES", 5)
    done = run("train", "grow", "sums.jsonl", "--decide-only", "--quiet", "--threshold", "0.3")
    assert done.code == 0, done.err
    assert seen["queries"].shape == (5, 16)
    assert len(seen["given"]) == 5
    assert set(seen["given"][0]) == {"general_chat", "python_code"}
    assert (seen["general"], seen["threshold"]) == ("general_chat", 0.3)
    assert len(seen["background"].others) == 16


def test_a_recipe_is_run_as_it_says(run, folder):
    (folder / "grow.toml").write_text(
        'name = "g"\nstage = "grow"\nbase = "tiny-base"\nstart = "python"\ndata = "."\ntokens = 256\n'
        'batch_tokens = 128\nwindows = [[1.0, 64]]\ncompile = false\nlogs = ["none"]\n'
        '[[mix]]\nfiles = ["sums.jsonl"]\ntokens = 1\n'
    )
    done = run("train", "grow", "grow.toml", "--quiet")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "grow.toml: runs/g/checkpoint.pt"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--to", "python", "--new", "sums"), 2, "give --to or --new, not both"),
        (("--to", "pythn"), 1, "error: no pack 'pythn' is installed (did you mean 'python'?)"),
        (("--to", "tiny-router"), 1, "error: tiny-router cannot grow: it is a router pack"),
    ],
)
def test_what_cannot_grow_is_told(run, folder, arguments, code, told):
    done = run("train", "grow", "sums.jsonl", *arguments)
    assert done.code == code
    assert told in done.err


def test_the_key_is_read_where_the_recipe_says(run, folder, monkeypatch):
    with running() as service:
        Path("student.toml").write_text(DISTILL.format(url=service.url))
        monkeypatch.delenv("THE_KEY", raising=False)
        done = run("train", "distill", "student.toml", "--quiet", "--logs", "none")
        assert done.code == 1
        assert "there is no key to ask with; set THE_KEY and run `modularbase train distill`" in done.err
        monkeypatch.setenv("THE_KEY", "secret")
        done = run("train", "distill", "student.toml", "--quiet", "--logs", "none")
        assert done.code == 0, done.err
        assert set(service.keys) == {"Bearer secret"}
        assert len(service.asked) == 5
    assert "secret" not in "".join(path.read_text("utf-8", "replace") for path in folder.glob("runs/**/*.json*"))


def test_a_pack_is_aligned_by_its_command(run, folder):
    Path("align.toml").write_text(
        'name = "a"\nstage = "align"\nbase = "tiny-base"\nstart = "python"\ndata = "."\ntokens = 256\n'
        'batch_tokens = 128\nwindows = [[1.0, 64]]\ncompile = false\n[[mix]]\nfiles = ["sums.jsonl"]\ntokens = 600\n'
    )
    done = run("train", "align", "align.toml", "--learns", "input", "--learns", "output", "--quiet", "--logs", "none")
    assert done.code == 0, done.err
    assert done.out == "align.toml: runs/a/checkpoint.pt\n"
