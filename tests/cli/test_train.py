"""`modularbase train`: its commands, the flags of recipe keys, and what is said when a recipe cannot be taken."""

import json
import sys
from dataclasses import fields
from types import SimpleNamespace

import click
import pytest
from tiny_packs import catalog_of

from modularbase_core.cli.train import COMMANDS, train
from modularbase_core.cli.train.flags import HELP, key_fields
from modularbase_core.train.recipe import STAGES, Recipe
from modularbase_core.train.recipe.keys import CHOICES

NETWORK = """
[architecture]
kind = "base"
vocabulary_size = 8192
understanding_layers = 1
fusion_layers = 1
[architecture.blocks]
hidden_size = 64
heads = 2
kv_heads = 1
head_size = 32
ffn_size = 96
[pack]
kind = "pack"
base_hidden_size = 64
layers = 1
[pack.blocks]
hidden_size = 64
heads = 2
kv_heads = 1
head_size = 32
ffn_size = 96
"""
KEYS = 'name = "tiny"\nstage = "{stage}"\ntokens = 2560\nbatch_tokens = 256\nwindows = [[0.5, 64], [0.5, 128]]\n'


@pytest.fixture
def recipe(tmp_path):
    def write(stage, more=""):
        path = tmp_path / f"{stage}.toml"
        path.write_text(KEYS.format(stage=stage) + 'tokenizer = "t.json"\n' + more + NETWORK)
        return path

    return write


@pytest.fixture
def trained(monkeypatch, tmp_path, tiny_packs):
    """Record which recipes would be trained."""
    calls = []

    def run_recipe(recipe, **more):
        calls.append((recipe, more))
        return tmp_path / "runs" / recipe.name / "checkpoint.pt"

    monkeypatch.setitem(sys.modules, "modularbase_core.train.run", SimpleNamespace(run_recipe=run_recipe))
    ships = SimpleNamespace(ship_recipe=lambda recipe, **more: tmp_path / "pack" / recipe.name)
    monkeypatch.setitem(sys.modules, "modularbase_core.train.ship", ships)
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of(tiny_packs))
    return calls


def test_every_stage_has_its_command():
    assert set(STAGES) | {"plan", "run"} == set(COMMANDS)
    group = click.Context(train)
    for name in COMMANDS:
        assert isinstance(train.get_command(group, name), click.Command)


@pytest.mark.parametrize("stage", ["base", "router", "chat", "pack"])
def test_a_stage_is_trained_by_its_command(run, trained, recipe, tmp_path, stage):
    path = recipe(stage)
    done = run("train", stage, str(path), "--data", str(tmp_path), "--runs", str(tmp_path / "runs"))
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{path}: {tmp_path / 'runs/tiny/checkpoint.pt'}\n"
    ((taken, more),) = trained
    assert (taken.stage, taken.compile) == (stage, True)
    assert "tiny-base" in [one.id for one in more.pop("installed")().packs]
    assert more == {"data": tmp_path, "runs": tmp_path / "runs", "quiet": False}


def test_files_lie_where_the_flag_says_or_else_the_recipe(run, trained, recipe, tmp_path):
    (tmp_path / "texts").mkdir()
    path = recipe("pack", 'data = "texts"\n')
    assert run("train", "pack", str(path)).code == 0
    assert run("train", "pack", str(path), "--data", str(tmp_path)).code == 0
    assert [more["data"] for _, more in trained] == [tmp_path / "texts", tmp_path]
    done = run("train", "pack", str(recipe("pack")))
    assert done.err == "error: recipe 'tiny' does not say where its files lie; give --data, or `data` in it\n"
    done = run("train", "pack", str(recipe("pack", 'data = "none"\n')))
    assert done.err == f"error: recipe 'tiny': data is 'none', but {tmp_path / 'none'} is no folder; name one\n"
    assert len(trained) == 2


def test_a_recipe_of_another_stage_is_told_its_command_before_anything_runs(run, trained, recipe, tmp_path):
    path = recipe("pack")
    done = run("train", "base", str(path), "--data", str(tmp_path))
    assert done.code == 1
    assert done.err == f"error: {path} is of stage 'pack'; run `modularbase train pack {path}`\n"
    assert trained == []


@pytest.mark.parametrize("words", [["run"], [], ["--quiet"]])
def test_several_recipes_run_in_turn_by_either_spelling(run, trained, recipe, tmp_path, words):
    paths = [str(recipe(stage)) for stage in ("base", "chat", "router")]
    done = run("train", *words, *paths, "--data", str(tmp_path), "--ship", "--json")
    assert done.code == 0
    assert [one.stage for one, _ in trained] == ["base", "chat", "router"]
    assert all(more["quiet"] for _, more in trained)
    nothing = {"steps": None, "tokens": None, "loss": None, "seconds": None}
    made = {"checkpoint": str(tmp_path / "runs/tiny/checkpoint.pt"), "pack": str(tmp_path / "pack/tiny"), **nothing}
    assert json.loads(done.out)[2] == {"recipe": paths[2], "stage": "router", **made}


def test_a_mistaken_recipe_is_told_before_the_first_one_runs(run, trained, recipe, tmp_path):
    done = run("train", str(recipe("base")), str(recipe("pack", "tokenz = 1\n")), "--data", str(tmp_path))
    assert done.err == "error: pack.toml has the unknown key 'tokenz' (did you mean 'tokens'?)\n"
    assert trained == []


def test_one_name_is_not_for_several_runs(run, trained, recipe, tmp_path):
    paths = [str(recipe(stage)) for stage in ("base", "chat")]
    done = run("train", *paths, "--data", str(tmp_path), "--name", "x")
    assert done.err == "error: --name names one run, but there are several recipes; leave it out\n"


def test_a_flag_for_every_key_of_one_value():
    scalar = {"str", "str | None", "int", "float", "bool", "tuple[str, ...]"}
    keys = {item.name for item in fields(Recipe) if str(item.type) in scalar} - {"stage", "data"}
    assert set(key_fields()) == keys
    assert set(HELP) == keys, "what each flag says"


GIVEN = {
    "tokens": ["--tokens", "5_120"],
    "matrix_rate": ["--matrix-rate", "0.5"],
    "optimiser": ["--optimiser", "adamw"],
    "response_only": ["--response-only"],
    "compile": ["--no-compile"],
    "logs": ["--logs", "tensorboard", "--logs", "wandb"],
    "name": ["--name", "another"],
    "base": ["--base", "tiny-base"],
    "dtype": ["--dtype", "int4"],
}
WANTED = {
    "tokens": 5120,
    "matrix_rate": 0.5,
    "optimiser": "adamw",
    "response_only": True,
    "compile": False,
    "logs": ("tensorboard", "wandb"),
    "name": "another",
    "base": "tiny-base",
    "dtype": "int4",
}


@pytest.mark.parametrize("key", GIVEN)
def test_a_flag_goes_before_the_recipe(run, trained, recipe, tmp_path, key):
    path = recipe("pack")
    assert run("train", "pack", str(path), "--data", str(tmp_path), *GIVEN[key]).code == 0
    assert run("train", "pack", str(path), "--data", str(tmp_path)).code == 0
    (given, _), (plain, _) = trained
    differing = {item.name for item in fields(Recipe) if getattr(given, item.name) != getattr(plain, item.name)}
    assert differing == {key}
    assert getattr(given, key) == WANTED[key]


def test_the_old_name_of_no_compile_still_works(run, trained, recipe, tmp_path):
    assert run("train", str(recipe("pack")), "--data", str(tmp_path), "--eager").code == 0
    assert trained[0][0].compile is False
    assert "--eager" not in run("train", "pack", "--help").out


def test_paths_on_the_command_line_are_where_the_user_is(run, trained, recipe, tmp_path, monkeypatch):
    path = recipe("pack")
    (tmp_path / "here/set").mkdir(parents=True)
    (tmp_path / "here/set/manifest.json").touch()
    monkeypatch.chdir(tmp_path / "here")
    more = ["--tokenizer", "x.json", "--ship-to", "out"]
    for over in ("set", "tiny-base"):
        flags = [*more, "--over", over, "--start", over]
        assert run("train", "pack", str(path), "--data", "..", *flags).code == 0
    (first, _), (second, _) = trained
    assert first.folder / first.tokenizer == tmp_path / "here/x.json"
    assert first.folder / first.ship == tmp_path / "here/out"
    assert first.folder / first.over == tmp_path / "here/set"
    assert (second.over, second.start) == ("tiny-base", "tiny-base")
    assert first.folder / first.start == tmp_path / "here/set"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tokens", "many"], "'many' is not a valid integer"),
        (["--optimiser", "muan"], "'muan' is not one of 'muon', 'adamw'"),
        (["--tokns", "1"], "No such option '--tokns'"),
    ],
)
def test_a_flag_of_another_kind_is_wrong_usage(run, trained, recipe, tmp_path, flags, told):
    done = run("train", "pack", str(recipe("pack")), "--data", str(tmp_path), *flags)
    assert done.code == 2
    assert told in " ".join(done.err.split())


def test_a_value_that_a_recipe_may_not_have_is_told_as_of_the_recipe(run, trained, recipe, tmp_path):
    done = run("train", "pack", str(recipe("pack")), "--data", str(tmp_path), "--batch-tokens", "100")
    assert done.err == "error: recipe 'tiny': batch_tokens is not a multiple of the window 64\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bose"], "no command 'bose' (did you mean 'base'?); `modularbase train --help` lists them"),
        (["recipe.tml"], "no command 'recipe.tml'; `modularbase train --help` lists them, and a recipe's name ends in"),
        (["none.toml", "--data", "."], "File 'none.toml' does not exist"),
        (["base"], "Missing argument 'RECIPE'"),
    ],
)
def test_a_command_or_file_that_is_none_is_wrong_usage(run, words, told):
    done = run("train", *words)
    assert done.code == 2
    assert told in done.err


def test_help_tells_own_options_and_keys_apart(run):
    out = run("train", "pack", "--help").out
    own, keys = out.split("Keys of the recipe, which go before its own:")
    assert "--data" in own
    assert "--ship " in own
    assert "--precision [bf16|fp16|fp32]" in keys
    assert "--checkpoint-activations / --no-checkpoint-activations" in " ".join(keys.split())
    assert all(word in " ".join(keys.split()) for word in CHOICES["optimiser"])
    assert "router Train the router of a base." in " ".join(run("train", "--help").out.split())


def test_training_without_torch_is_one_sentence(run, monkeypatch, recipe, tmp_path):
    for name in [name for name in sys.modules if name.startswith("modularbase_core.train.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    for words in (["pack"], [], ["plan"]):
        done = run("train", *words, str(recipe("pack")), "--data", str(tmp_path))
        assert done.code == 1
        assert done.err.startswith("error: training needs torch (")
        assert done.err.endswith("; run `pip install 'modularbase[train]'`\n")


def test_of_several_processes_the_first_one_ships_and_tells(run, trained, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("modularbase_core.train.parallel.first_process", lambda: False)
    monkeypatch.setattr(sys.modules["modularbase_core.train.ship"], "ship_recipe", None)
    done = run("train", str(recipe("pack")), "--data", str(tmp_path), "--ship")
    assert (done.code, done.out) == (0, "")
    assert len(trained) == 1


def test_a_plan_is_told_in_lines_and_as_json(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("modularbase_core.train.plan.free_memory", lambda **more: 10**10)
    monkeypatch.setattr("modularbase_core.train.measure.SECONDS", 0.0)
    path = str(recipe("base"))
    out = run("train", "plan", path, "--no-measure", "--runs", str(tmp_path / "runs")).out
    assert "2,560 tokens in 10 steps of 256" in out
    assert "not measured" in out
    done = run("train", "plan", path, "--no-compile", "--json", "--runs", str(tmp_path / "runs"))
    value = json.loads(done.out)
    assert (done.code, value["shortfall"]) == (0, None)
    assert [one["window"] for one in value["phases"]] == [64, 128]
    assert value["seconds"] > 0
    assert value["memory_bytes"]["peak"] > value["memory_bytes"]["weights"]
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_does_not_fit_fails_and_says_what_to_do(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("modularbase_core.train.plan.free_memory", lambda **more: 10**8)
    done = run("train", "plan", str(recipe("base")))
    assert done.code == 1
    assert "not measured" in done.out
    assert done.err.startswith("error: recipe 'tiny' needs about 4")
    assert " of memory, but 100 MB are free; " in done.err
    value = json.loads((failed := run("train", "plan", str(recipe("base")), "--json")).out)
    assert failed.code == 1
    assert value["shortfall"] in done.err
