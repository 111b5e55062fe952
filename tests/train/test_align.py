"""A pack meets a new version of its base: turned, changed, too wide, or with other tokens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_packs import BASE, PACK, catalog_of, manifest, write_pack

from modularbase_core.device.weights import read_routing, read_weights, write_weights
from modularbase_core.errors import ConfigError, DataError
from modularbase_core.packs.catalog import Catalog
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.manifest import Manifest, weights_name, write_manifest
from modularbase_core.sdk.pack import Pack
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train import align
from modularbase_core.train.adapters import Fit
from modularbase_core.train.checkpoints import build_model, steps_done
from modularbase_core.train.installed import complete
from modularbase_core.train.loop import _Walk
from modularbase_core.train.origin import next_version
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import ship_recipe

RECIPE = """\
name = "aligned"
stage = "align"
base = "set/tiny-base"
start = "pack"
old_base = "tiny-base"
ship = "out/python_code"
tokens = 768
batch_tokens = 128
windows = [[1.0, 64]]
warmup_steps = 1
compile = false
[[mix]]
files = ["chats.jsonl"]
tokens = 2000
"""


TAUGHT = """\
name = "taught"
stage = "pack"
base = "tiny-base"
start = "python_code"
tokens = 10240
batch_tokens = 128
windows = [[1.0, 64]]
warmup_steps = 5
compile = false
[[mix]]
files = ["chats.jsonl"]
tokens = 2000
[manifest]
id = "python_code"
version = "1.0.0"
base = "tiny-base"
base_compatibility = ["1.0"]
"""


@pytest.fixture
def catalog(tiny_packs: dict[str, Path]) -> Catalog:
    return catalog_of(tiny_packs)


@pytest.fixture(scope="module")
def learnt(tiny_packs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums, a pack that learnt them, and the next version of its base: the stream before fusion is turned."""
    root = tmp_path_factory.mktemp("align")
    for name in ("tiny-base", "tiny-router", "general_chat"):
        shutil.copytree(tiny_packs[name], root / "set" / name)
    turned(root / "set/tiny-base")
    chats = [{"prompt": f"add {i} and {i}", "response": f"that is {2 * i}"} for i in range(60)]
    (root / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    (root / "taught.toml").write_text(TAUGHT)
    recipe = replace(read_recipe(root / "taught.toml"), ship="pack")
    places = {"data": root, "runs": root / "runs", "quiet": True, "installed": lambda: catalog_of(tiny_packs)}
    run_recipe(recipe, **places)
    ship_recipe(recipe, **places)
    shutil.copy(tiny_packs["python_code"] / "examples.json", root / "pack")
    write_manifest(root / "pack", Manifest.read(root / "pack/manifest.json"))
    return root


@pytest.fixture
def folder(learnt: Path, tmp_path: Path) -> Path:
    """A recipe, with data, packs and bases beside it."""
    shutil.copytree(learnt, tmp_path, dirs_exist_ok=True)
    (tmp_path / "aligned.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(autouse=True)
def fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "FITTED_TOKENS", 8192)


def turned(directory: Path) -> None:
    """Turn the understanding stream of a base by an orthogonal matrix: it says the same in other directions."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0].astype(np.float32)
    architecture = replace(BASE, tied_embedding=False)
    weights = read_weights(directory / "model.safetensors", BASE)
    weights["head.weight"] = weights["embedding.weight"].copy()
    weights["embedding.weight"] = weights["embedding.weight"] @ turn
    for name, value in weights.items():
        if name.startswith("understanding.") and value.ndim == 2:
            weights[name] = turn.T @ value if name.endswith(("out.weight", "down.weight")) else value @ turn
    write_weights(directory / "model.safetensors", weights, form="fp32")
    said = Manifest.read(directory / "manifest.json")
    of_other_weights = {"layers": None, "hidden_size": None, "architecture_key": None, "files": {}}
    write_manifest(directory, replace(said, version="1.1.0", architecture=architecture, **of_other_weights))


def run(folder: Path, catalog: Catalog, runs: str = "runs", change: Recipe | None = None) -> Path:
    recipe = change or read_recipe(folder / "aligned.toml")
    return run_recipe(recipe, data=folder, runs=folder / runs, quiet=True, installed=lambda: catalog)


def network(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["network"]
    return state


def test_least_squares_finds_the_turn_of_a_base_and_so_the_packs_old_input(folder, catalog):
    run(folder, catalog)
    starts = json.loads((folder / "runs/aligned/starts.json").read_text())
    assert starts["taken"] == "input adapter by least squares"
    assert starts["loss"]["input adapter by least squares"] < starts["loss"]["as it is"]
    recipe = complete(read_recipe(folder / "aligned.toml"), folder / "runs", lambda: catalog)
    old = read_weights(folder / "pack/model.safetensors", PACK)
    model = build_model(replace(recipe, base="tiny-base", architecture=BASE), folder / "runs", 0, lambda: catalog)
    new = build_model(recipe, folder / "runs", 0, lambda: catalog)
    new.pack.load_state_dict(
        {n[5:]: v for n, v in network(folder / "runs/aligned/checkpoint.pt").items() if n.startswith("pack.")}
    )
    ids = torch.arange(20, 60)[None]
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
    with torch.no_grad():
        was, now = model(ids, mask), new(ids, mask)
    assert (was - now).norm() < 0.2 * was.norm()
    assert all(np.array_equal(old[n], new.pack.state_dict()[n]) for n in old if n.startswith("experts."))


def test_only_what_is_named_learns(folder, catalog):
    def changed(learns: tuple[str, ...]) -> set[str]:
        recipe = replace(read_recipe(folder / "aligned.toml"), learns=learns, old_base=None)
        made = network(run(folder, catalog, "-".join(("runs", *learns)), recipe))
        old = read_weights(folder / "pack/model.safetensors", PACK)
        return {name for name in old if not np.array_equal(old[name], made[f"pack.{name}"].numpy())}

    assert changed(()) == {"input_adapter.weight"}
    assert changed(("output",)) == {"output_adapter.weight"}
    assert changed(("norms",)) == {"experts.layers.0.attention_norm.weight", "experts.layers.0.ffn_norm.weight"}


def test_the_loss_falls_on_a_base_that_changed(folder, catalog):
    recipe = replace(read_recipe(folder / "aligned.toml"), old_base=None, tokens=128 * 60, learns=("input", "output"))
    before = json.loads((run(folder, catalog, change=recipe).parent / "starts.json").read_text())["loss"]["as it is"]
    again = replace(recipe, name="again", start=str(ship(folder, catalog, recipe)), tokens=128)
    after = json.loads((run(folder, catalog, change=again).parent / "starts.json").read_text())["loss"]["as it is"]
    assert after < 0.9 * before


def ship(folder: Path, catalog: Catalog, recipe: Recipe) -> Path:
    return ship_recipe(recipe, data=folder, runs=folder / "runs", quiet=True, installed=lambda: catalog)


def test_what_ships_is_the_packs_next_version_for_the_new_base_with_keys_by_its_router(folder, catalog, tiny_packs):
    run(folder, catalog)
    recipe = read_recipe(folder / "aligned.toml")
    for _ in range(2):  # shipped again it is the same version
        directory = ship(folder, catalog, recipe)
        made = check_pack(directory)
        assert (made.id, made.version, made.base_compatibility) == ("python_code", "1.1.0", ("1.1",))
    routing = read_routing(directory / "routing.safetensors", 16)
    beside = (Manifest.read(folder / f"set/{name}/manifest.json") for name in ("tiny-base", "tiny-router"))
    assert routing.made_with == weights_name(*beside)
    old, new = (read_weights(one / "model.safetensors", PACK) for one in (folder / "pack", directory))
    assert all(np.array_equal(old[name], new[name]) for name in old if name != "input_adapter.weight")
    assert read_examples(directory / "examples.json") == read_examples(tiny_packs["python_code"] / "examples.json")


def test_a_pack_may_be_shipped_into_its_own_folder(folder, catalog):
    recipe = replace(read_recipe(folder / "aligned.toml"), ship="pack")
    run(folder, catalog, change=recipe)
    for _ in range(2):
        assert Manifest.read(ship(folder, catalog, recipe) / "manifest.json").version == "1.1.0"


def test_without_a_router_to_read_its_examples_the_pack_ships_without_keys(folder, catalog):
    shutil.rmtree(folder / "set/tiny-router")
    run(folder, catalog)
    directory = ship(folder, catalog, read_recipe(folder / "aligned.toml"))
    assert not (directory / "routing.safetensors").exists()
    assert check_pack(directory).files.keys() == {"model.safetensors", "examples.json"}


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(folder, catalog, monkeypatch):
    whole = network(run(folder, catalog))
    walked, walk = [], _Walk._gradient

    def stopping(self: _Walk, ids: torch.Tensor, learn: torch.Tensor) -> float:
        walked.append(ids)
        if len(walked) == 4:
            raise KeyboardInterrupt
        return walk(self, ids, learn)

    monkeypatch.setattr(_Walk, "_gradient", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(folder, catalog, "again")
    monkeypatch.undo()
    assert steps_done(folder / "again/aligned/checkpoint.pt") == 3
    resumed = network(run(folder, catalog, "again"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_examples_stand_in_for_a_mix(folder, catalog):
    recipe = replace(read_recipe(folder / "aligned.toml"), mix=())
    assert run(folder, catalog, change=recipe).exists()
    bare = shutil.copytree(folder / "pack", folder / "bare", ignore=shutil.ignore_patterns("examples.json"))
    write_manifest(bare, replace(Manifest.read(bare / "manifest.json"), files={}))
    with pytest.raises(ConfigError, match=r"has no \[\[mix\]\], and bare brings no examples.json"):
        run(folder, catalog, "bare_runs", replace(recipe, start="bare"))


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"start": None}, ConfigError, "stage align needs `start`, the pack to align, and `base`"),
        ({"base": None}, ConfigError, "has no `tokenizer`"),
        ({"start": "pythn"}, DataError, r"no pack 'pythn' is installed \(did you mean 'python'\?\)"),
        ({"old_base": "python_code"}, DataError, "old_base is 'python_code', a pack of type domain"),
        ({"base": "set/tiny-bass"}, DataError, "base is 'set/tiny-bass', but .* does not exist"),
    ],
)
def test_a_recipe_that_cannot_be_aligned_says_why(folder, catalog, change, kind, told):
    with pytest.raises(kind, match=told):
        run(folder, catalog, change=replace(read_recipe(folder / "aligned.toml"), **change))


def test_a_base_of_another_shape_is_refused(folder, catalog, tmp_path):
    blocks = replace(BASE.blocks, hidden_size=128)
    write_pack(tmp_path / "wide", manifest("tiny-base", "base", replace(BASE, blocks=blocks)))
    recipe = replace(read_recipe(folder / "aligned.toml"), base="wide")
    with pytest.raises(DataError, match="takes hidden states 64 wide, but wide gives 128; only a base as wide"):
        run(folder, catalog, change=recipe)
    write_pack(tmp_path / "other", manifest("tiny-base", "base", replace(BASE, vocabulary_size=8320)))
    recipe = replace(read_recipe(folder / "aligned.toml"), base="other")
    with pytest.raises(DataError, match="reads 8192 tokens 64 wide, other 8320 tokens 64 wide; leave old_base out"):
        run(folder, catalog, change=recipe)
    window = replace(BASE.window, trained_tokens=256)
    write_pack(tmp_path / "long", manifest("tiny-base", "base", replace(BASE, window=window)))
    recipe = replace(read_recipe(folder / "aligned.toml"), base="long")
    with pytest.raises(DataError, match=r"sees another window than long \(128 against 256 tokens"):
        run(folder, catalog, change=recipe)


def test_a_fit_of_nothing_changes_nothing_where_nothing_was_seen():
    fit = Fit(8)
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    rows[:, 4:] = 0
    fit.add(rows, -rows)
    turn = fit.solve()
    assert torch.allclose(turn[:4, :4], -torch.eye(4), atol=1e-2)
    assert torch.allclose(turn[4:, 4:], torch.eye(4), atol=1e-6)


def test_the_next_version_is_the_next_minor_one():
    assert [next_version(one) for one in ("1.0.1", "0.9.0", "2.11.3")] == ["1.1.0", "0.10.0", "2.12.0"]


def test_an_installed_pack_is_as_good_as_one_in_a_folder(folder, catalog):
    recipe = replace(read_recipe(folder / "aligned.toml"), start="python")
    run(folder, catalog, change=recipe)
    assert Pack(folder / "runs/aligned/origin").manifest.id == "python_code"
