"""A tiny base, its chat, its router and a pack, from recipes to pack directories that load."""

import json
from pathlib import Path

import numpy as np
import pytest

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train.recipe import read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import load_shipped, ship_recipe
from modularbase_core.train.tokenizer import train_tokenizer

NETWORK = """
[architecture]
kind = "base"
vocabulary_size = 320
understanding_layers = 1
fusion_layers = 1
[architecture.blocks]
hidden_size = 64
heads = 2
kv_heads = 1
head_size = 32
ffn_size = 64
[pack]
kind = "pack"
base_hidden_size = 64
layers = 1
[pack.blocks]
hidden_size = 64
heads = 2
kv_heads = 1
head_size = 32
ffn_size = 64
[router]
kind = "router"
base_hidden_size = 64
width = 32
key_size = 16
"""
COMMON = 'batch_tokens = 128\nwindows = [[0.5, 32], [0.5, 64]]\nwarmup_steps = 1\ntokenizer = "tokenizer.json"\n'
CHAT = '[[mix]]\nfiles = ["chat.jsonl"]\ntokens = 2000\n'
LABELLED = '[[mix]]\nfiles = ["labelled.jsonl"]\ntokens = 40\n'


def manifest(pack_id: str, kind: str) -> str:
    base = "" if kind == "base" else 'base = "b"\nbase_compatibility = ["1.0"]\n'
    return f'[manifest]\nid = "{pack_id}"\nname = "{pack_id}"\nversion = "1.0.0"\ntype = "{kind}"\n{base}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    sums = [{"prompt": f"add {i} and {i}", "response": f"that is {2 * i}", "lang": "en"} for i in range(60)]
    (root / "chat.jsonl").write_text("\n".join(map(json.dumps, sums)))
    labelled = [{"text": f"add {i}", "domain": "sums", "intent": "add"} for i in range(20)]
    labelled += [{"text": f"sing a song {i}", "domain": "songs", "intent": "sing"} for i in range(20)]
    (root / "labelled.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    train_tokenizer([row["prompt"] + row["response"] for row in sums], 320, root / "tokenizer.json")
    stages = {
        "base": 'stage = "base"\ntokens = 1280\nrecall_tokens = 600\nship = "out/base"\n' + COMMON + CHAT,
        "chat": 'stage = "pack"\nbase = "base"\nstart = "base"\ntokens = 640\nresponse_only = true\n'
        'ship = "out/chat"\n' + COMMON + CHAT,
        "router": 'stage = "router"\nbase = "base"\ntokens = 512\nship = "out/router"\n'
        + COMMON.replace("128", "256")
        + LABELLED,
        "sums": 'stage = "pack"\nbase = "base"\ntokens = 640\nover = "out"\nship = "out/sums"\n'
        + COMMON
        + CHAT
        + LABELLED.replace("mix", "examples")
        + 'domains = ["sums"]\n'
        + LABELLED.replace("mix", "others")
        + 'domains = ["songs"]\n',
    }
    kinds = {"base": "base", "chat": "system", "router": "router", "sums": "domain"}
    for name, text in stages.items():
        described = manifest({"base": "b"}.get(name, name), kinds[name])
        (root / f"{name}.toml").write_text(f'name = "{name}"\n{text}{NETWORK}{described}')
    return root


def test_every_stage_ships_a_pack_that_checks(folder: Path) -> None:
    for name in ("base", "chat", "router", "sums"):
        recipe = folder / f"{name}.toml"
        run_recipe(recipe, data=folder, runs=folder / "runs", quiet=True, compiled=False)
        directory = ship_recipe(recipe, data=folder, runs=folder / "runs", quiet=True)
        assert check_pack(directory).version == "1.0.0"
        load_shipped(directory)
    assert (folder / "out/sums/routing.safetensors").exists()
    assert len(json.loads((folder / "out/sums/examples.json").read_text())) == 20


def test_a_finished_run_is_not_trained_again(folder: Path) -> None:
    recipe, runs = folder / "base.toml", folder / "again"
    first = run_recipe(recipe, data=folder, runs=runs, quiet=True, compiled=False).stat().st_size
    weights = [np.array(value) for value in _weights(runs)]
    run_recipe(recipe, data=folder, runs=runs, quiet=True, compiled=False)
    assert (runs / "base/checkpoint.pt").stat().st_size == first
    assert all(np.array_equal(a, b) for a, b in zip(weights, _weights(runs), strict=True))


def test_a_stage_without_the_one_before_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run that stage first"):
        run_recipe(folder / "chat.toml", data=folder, runs=tmp_path, quiet=True, compiled=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("tokens = 1280", "tokenz = 1280"), "unknown key 'tokenz'; did you mean 'tokens'"),
        (('stage = "base"', 'stage = "bass"'), "stage is 'bass'"),
        (("[0.5, 32]", "[0.5, 33]"), "not a multiple of the window 33"),
        (('name = "base"', "name ="), "is not TOML"),
        (("tokens = 1280", "tokens = 5"), "less than one batch"),
        (("hidden_size = 64", "hidden_size = -64"), "must be positive"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(folder: Path, tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text((folder / "base.toml").read_text().replace(*change))
    with pytest.raises(Exception, match=told.replace("(", r"\(")):
        read_recipe(path)


def test_a_recipe_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.toml")


def _weights(runs: Path) -> list[np.ndarray]:
    from modularbase_core.train.checkpoints import part_of

    return [value.numpy() for value in part_of(runs / "base/checkpoint.pt", "base.").values()]
