"""A pack learns new records beside what it knew, is measured by what was kept out, and ships as its next version."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_packs import catalog_of

from modularbase_core.device.weights import read_routing, read_tensors, write_weights
from modularbase_core.errors import ConfigError, DataError
from modularbase_core.packs.catalog import Catalog
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.manifest import Manifest, weights_name, write_manifest
from modularbase_core.sdk.parameters import routing_shapes
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train import grow
from modularbase_core.train.asked import messages_asked
from modularbase_core.train.checkpoints import steps_done
from modularbase_core.train.loop import _Walk
from modularbase_core.train.recipe import Recipe, Source, read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import ship_recipe

RECIPE = """\
name = "more_python"
stage = "grow"
base = "tiny-base"
start = "pack"
ship = "out"
tokens = 5120
batch_tokens = 128
windows = [[1.0, 64]]
warmup_steps = 2
compile = false
response_only = true
[[mix]]
files = ["sums.jsonl"]
tokens = 1
[[replay]]
files = ["songs.jsonl"]
tokens = 1
"""


@pytest.fixture
def catalog(tiny_packs: dict[str, Path]) -> Catalog:
    return catalog_of(tiny_packs)


@pytest.fixture
def folder(tmp_path: Path, tiny_packs: dict[str, Path]) -> Path:
    """A recipe, data old and new, and a pack whose keys say what made them."""
    rows = {
        "sums": [(f"add {i} and {i}", f"that is {2 * i}") for i in range(60)],
        "songs": [(f"sing song {i}", f"la la la {i}") for i in range(40)],
    }
    for name, pairs in rows.items():
        lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in pairs]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "grow.toml").write_text(RECIPE)
    shutil.copytree(tiny_packs["python_code"], tmp_path / "pack")
    routing = read_tensors(tmp_path / "pack/routing.safetensors", routing_shapes(16))
    made_with = weights_name(
        *(Manifest.read(tiny_packs[one] / "manifest.json") for one in ("tiny-base", "tiny-router"))
    )
    write_weights(tmp_path / "pack/routing.safetensors", routing, form="fp32", metadata={"made_with": made_with})
    write_manifest(tmp_path / "pack", Manifest.read(tmp_path / "pack/manifest.json"))
    return tmp_path


def recipe_of(folder: Path, **change: object) -> Recipe:
    return replace(read_recipe(folder / "grow.toml"), **change)


def run(folder: Path, catalog: Catalog, recipe: Recipe | None = None, runs: str = "runs") -> Path:
    recipe = recipe or recipe_of(folder)
    return run_recipe(recipe, data=folder, runs=folder / runs, quiet=True, installed=lambda: catalog)


def ship(folder: Path, catalog: Catalog, recipe: Recipe | None = None) -> Path:
    recipe = recipe or recipe_of(folder)
    return ship_recipe(recipe, data=folder, runs=folder / "runs", quiet=True, installed=lambda: catalog)


def network(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["network"]
    return state


def records(folder: Path, name: str) -> list[str]:
    text = (folder / "runs/more_python/material" / f"{name}.jsonl").read_text()
    return [json.loads(line)["messages"][0]["content"] for line in text.splitlines()]


def test_new_and_replayed_records_are_learnt_and_those_kept_out_measured(folder, catalog):
    run(folder, catalog)
    growth = grow.read_growth(folder / "runs", "more_python")
    assert growth["after"]["new"] < 0.6 * growth["before"]["new"]
    assert growth["after"]["replay"] < growth["before"]["replay"]
    assert len(records(folder, "new-0")) == 57
    assert len(records(folder, "new-kept")) == 3
    assert not set(records(folder, "new-0")) & set(records(folder, "new-kept"))
    assert len(records(folder, "replay-0")) == 38
    assert len(records(folder, "replay-kept")) == 2


def test_replay_has_its_share_of_the_tokens(folder, catalog):
    recipe = recipe_of(folder, tokens=1280, replay_share=0.25)
    run(folder, catalog, recipe)
    kept = grow.divide(recipe, folder, folder / "runs/more_python/material", list)
    assert [source.tokens for source in kept.sources(recipe)] == [960, 320]
    assert kept.sources(replace(recipe, replay_share=0.0))[0].tokens == 1280


def test_a_record_twice_in_the_data_is_kept_out_of_both(folder, catalog):
    line = (folder / "sums.jsonl").read_text()
    (folder / "sums.jsonl").write_text(f"{line}\n{line}")
    run(folder, catalog, recipe_of(folder, tokens=128))
    assert len(records(folder, "new-0")) == 57


def test_without_old_data_the_packs_own_examples_are_replayed_with_its_answers(folder, catalog, tiny_packs):
    examples = [{"prompt": "hi", "response": "hello"}, {"prompt": "bye"}]
    (folder / "pack/examples.json").write_text(json.dumps(examples))
    write_manifest(folder / "pack", Manifest.read(folder / "pack/manifest.json"))
    recipe = recipe_of(folder, replay=(), tokens=256)
    state = network(run(folder, catalog, recipe))
    told = [json.loads(one) for one in (folder / "runs/more_python/material/replay-0.jsonl").read_text().splitlines()]
    said = {one["messages"][0]["content"]: one["messages"][1]["content"] for one in told}
    assert said["hi"] == "hello"
    assert set(said) <= {"hi", "bye"}
    assert len(told) - len(said) <= 1  # general chat has an example too
    old = network(run(folder, catalog, replace(recipe, name="again", replay_share=0.0)))
    assert not torch.equal(state["pack.input_adapter.weight"], old["pack.input_adapter.weight"])
    assert not (folder / "runs/again/material/replay-0.jsonl").exists()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits_and_figures(folder, catalog, monkeypatch):
    recipe = recipe_of(folder, tokens=1280)
    whole = network(run(folder, catalog, recipe))
    walked, walk = [], _Walk._gradient

    def stopping(self: _Walk, ids: torch.Tensor, learn: torch.Tensor) -> float:
        walked.append(ids)
        if len(walked) == 5:
            raise KeyboardInterrupt
        return walk(self, ids, learn)

    monkeypatch.setattr(_Walk, "_gradient", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(folder, catalog, recipe, "again")
    monkeypatch.undo()
    assert steps_done(folder / "again/more_python/checkpoint.pt") == 4
    assert "after" not in grow.read_growth(folder / "again", "more_python")
    (folder / "sums.jsonl").write_bytes((folder / "sums.jsonl").read_bytes() + b"\n")  # the same, read anew
    resumed = network(run(folder, catalog, recipe, "again"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert grow.read_growth(folder / "again", "more_python") == grow.read_growth(folder / "runs", "more_python")


def test_what_ships_is_the_next_version_with_its_old_keys_and_some_for_the_new_messages(folder, catalog):
    run(folder, catalog, recipe_of(folder, tokens=256))
    for _ in range(2):  # shipped again it is the same version
        made = check_pack(ship(folder, catalog, recipe_of(folder, tokens=256)))
        assert (made.id, made.version, made.base_compatibility) == ("python_code", "1.1.0", ("1.0",))
    old, new = (read_routing(folder / name / "routing.safetensors", 16) for name in ("pack", "out"))
    assert np.array_equal(new.keys[: len(old.keys)], old.keys)
    assert len(new.keys) == len(old.keys) + 4
    assert (new.scale, new.bias, new.made_with) == (old.scale, old.bias, old.made_with)
    shown = [one.prompt for one in read_examples(folder / "out/examples.json")]
    assert shown[0] == "hi"
    assert len(shown) == 33
    assert set(shown[1:]) <= {f"add {i} and {i}" for i in range(60)}


def test_keys_that_were_made_with_another_router_are_made_again_of_all_examples(folder, catalog, tiny_packs):
    shutil.copy(tiny_packs["python_code"] / "routing.safetensors", folder / "pack/routing.safetensors")
    write_manifest(folder / "pack", Manifest.read(folder / "pack/manifest.json"))
    recipe = recipe_of(folder, tokens=256)
    run(folder, catalog, recipe)
    old, new = (
        read_routing(path / "routing.safetensors", 16) for path in (folder / "pack", ship(folder, catalog, recipe))
    )
    assert new.made_with
    assert not np.array_equal(new.keys[: len(old.keys)], old.keys[: len(new.keys)])


def test_a_new_pack_begins_as_another_and_keeps_its_own_name(folder, catalog):
    draft = {"schema": 1, "id": "sums", "name": "Sums", "version": "0.1.0", "base": "tiny-base", "licence": "MIT"}
    (folder / "sums").mkdir()
    (folder / "sums/manifest.json").write_text(json.dumps(draft))
    recipe = recipe_of(folder, start="general_chat", ship="sums", replay=(), replay_share=0.0, tokens=256)
    run(folder, catalog, recipe)
    made = check_pack(ship(folder, catalog, recipe))
    assert (made.id, made.version, made.licence) == ("sums", "0.1.0", "MIT")
    assert len(read_examples(folder / "sums/examples.json")) == 60
    assert len(read_routing(folder / "sums/routing.safetensors", 16).keys) == 15


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"start": None}, ConfigError, "does not say which pack is to grow; name it as `start` and its base as `base`"),
        ({"mix": ()}, ConfigError, r"recipe 'more_python' has no \[\[mix\]\]; name there what the pack is to learn"),
        ({"mix": (Source(files=("no.jsonl",), tokens=1),)}, DataError, "no.jsonl does not exist"),
    ],
)
def test_a_recipe_that_cannot_grow_says_why(folder, catalog, change, kind, told):
    with pytest.raises(kind, match=told):
        run(folder, catalog, recipe_of(folder, **change))


def test_replay_is_of_grow_alone(folder):
    text = RECIPE.replace('stage = "grow"', 'stage = "pack"')
    (folder / "grow.toml").write_text(text)
    with pytest.raises(ConfigError, match="`replay` is for stage 'grow', not 'pack'; remove it"):
        read_recipe(folder / "grow.toml")
    (folder / "grow.toml").write_text(RECIPE.replace("compile", "replay_share = 1\ncompile"))
    with pytest.raises(ConfigError, match="replay_share is 1; it must be at least 0 and under 1"):
        read_recipe(folder / "grow.toml")


def test_what_is_asked_is_what_users_say_first_a_pages_headings_or_codes_beginning(tmp_path):
    said = [{"role": "assistant", "content": "yes?"}, {"role": "user", "content": "why?"}]
    rows = [{"prompt": "how?", "response": "so"}, {"messages": said}, {"prompt": "how?", "response": "or so"}]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "page.md").write_text("# What it is\n\n" + "It is a thing that does what it does. " * 4)
    (tmp_path / "plain.txt").write_text("Once upon a time. " * 100)
    (tmp_path / "code.py").write_text("x = 1\n" * 200)
    sources = [Source(files=(name,), tokens=1) for name in ("chats.jsonl", "page.md", "plain.txt", "code.py")]
    asked = messages_asked(sources, tmp_path, most=10, seed=0)
    assert {"how?", "why?", "What it is", "Once upon a time."} <= set(asked)
    assert len(asked) == len(set(asked))
    assert max(asked, key=len) == ("x = 1\n" * 200)[:400]
    assert len(messages_asked(sources, tmp_path, most=2, seed=0)) == 2
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": said[:1]}))
    with pytest.raises(DataError, match=r"nobody asks anything in chats.jsonl; give records with a message of the"):
        messages_asked(sources[:1], tmp_path, most=10, seed=0)
