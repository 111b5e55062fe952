"""Recipes that stand on installed packs: nothing is copied, and what they leave out is the packs'."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_packs import BASE, PACK, ROUTER, TOKENIZER, catalog_of

from modularbase_core.device.weights import read_routing, read_weights
from modularbase_core.errors import ConfigError, DataError, PackError
from modularbase_core.packs.catalog import Catalog
from modularbase_core.packs.keys import apart, scores
from modularbase_core.sdk.examples import read_examples
from modularbase_core.sdk.manifest import Manifest, weights_name
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train.checkpoints import build_model, load_base
from modularbase_core.train.installed import complete, messages_of_neighbours, reading_base, reading_router
from modularbase_core.train.recipe import Recipe, read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import ship_recipe
from modularbase_core.train.shipped_keys import Reading, write_keys

RECIPE = """\
name = "sums"
stage = "pack"
base = "tiny-base"
start = "general_chat"
ship = "out/sums"
tokens = 1280
batch_tokens = 256
windows = [[0.5, 64], [0.5, 128]]
warmup_steps = 1
response_only = true
[[mix]]
files = ["chats.jsonl"]
tokens = 1280
[[examples]]
files = ["chats.jsonl"]
tokens = 30
"""
DRAFT = {"schema": 1, "id": "sums", "name": "Sums", "version": "0.3.0", "base": "tiny-base", "licence": "MIT"}


@pytest.fixture
def catalog(tiny_packs: dict[str, Path]) -> Catalog:
    return catalog_of(tiny_packs)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return written(tmp_path, RECIPE)


def written(folder: Path, text: str) -> Recipe:
    (folder / "sums.toml").write_text(text)
    return read_recipe(folder / "sums.toml")


def nothing_installed() -> Catalog:
    raise AssertionError("nothing has to be looked up")


def test_what_is_left_out_is_the_installed_packs(recipe, catalog, tiny_packs, tmp_path):
    whole = complete(recipe, tmp_path / "runs", lambda: catalog)
    assert (whole.architecture, whole.pack) == (BASE, PACK)
    assert whole.tokenizer == str(tiny_packs["tiny-base"] / "tokenizer/tokenizer.json")


def test_what_is_said_stays_and_nothing_is_looked_up(recipe, tmp_path):
    said = replace(recipe, architecture=BASE, pack=PACK, tokenizer="mine.json")
    assert complete(said, tmp_path / "runs", nothing_installed) == said


def test_a_pack_may_learn_a_part_of_the_head_from_one_that_has_none(recipe, catalog, tmp_path):
    wanted = replace(PACK, head_rank=8, vocabulary_size=BASE.vocabulary_size)
    whole = complete(replace(recipe, pack=wanted), tmp_path / "runs", lambda: catalog)
    pack = build_model(whole, tmp_path / "runs", 0, lambda: catalog).pack
    start = read_weights(catalog.find("general_chat").pack.weights, PACK)
    assert np.array_equal(pack.input_adapter.weight.detach().numpy(), start["input_adapter.weight"])
    assert not pack.head.up.weight.any()
    assert pack.head.down.weight.any()


def test_a_run_of_that_name_goes_before_the_pack(recipe, tmp_path):
    for name in ("tiny-base", "general_chat"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "checkpoint.pt").touch()
    said = replace(recipe, tokenizer="mine.json")
    assert complete(said, tmp_path / "runs", nothing_installed) == said
    with pytest.raises(ConfigError, match="has no `tokenizer`; give its file, or an installed pack as `base`"):
        complete(recipe, tmp_path / "runs", nothing_installed)
    with pytest.raises(ConfigError, match="a pack needs `base` "):
        build_model(said, tmp_path / "runs", 0, nothing_installed)


def test_the_shipped_weights_are_what_training_begins_with(recipe, catalog, tiny_packs, tmp_path):
    whole = complete(recipe, tmp_path / "runs", lambda: catalog)
    model = build_model(whole, tmp_path / "runs", 0, lambda: catalog)
    for network, name, architecture in ((model.base, "tiny-base", BASE), (model.pack, "general_chat", PACK)):
        shipped = read_weights(tiny_packs[name] / "model.safetensors", architecture)
        own = {key: value.detach().numpy() for key, value in network.state_dict().items()}
        assert own.keys() == shipped.keys()
        assert all(np.array_equal(own[key], shipped[key]) for key in own)
    assert not any(value.requires_grad for value in model.base.parameters())


def test_an_alias_is_as_good_as_an_id(recipe, catalog, tmp_path):
    said = replace(recipe, start="chat")
    assert complete(said, tmp_path, lambda: catalog).pack == PACK


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"base": "tiny-bass"},
            "recipe 'sums': base is 'tiny-bass', but {}/tiny-bass/checkpoint.pt does not exist (run that stage first, "
            "with its own recipe), and no pack 'tiny-bass' is installed (did you mean 'tiny-base'?)",
        ),
        ({"start": "nothing"}, "start is 'nothing', but {}/nothing/checkpoint.pt does not exist"),
        ({"base": "general_chat"}, "base is 'general_chat', a pack of type system; name one of type base"),
        ({"start": "tiny-base"}, "start is 'tiny-base', a pack of type base; name one of type system or domain"),
    ],
)
def test_what_is_neither_run_nor_pack_is_told_both_ways(recipe, catalog, tmp_path, change, told):
    with pytest.raises(DataError, match=re.escape(told.format(tmp_path))):
        complete(replace(recipe, **change), tmp_path, lambda: catalog)


def test_a_network_that_differs_from_the_packs_is_refused(recipe, catalog, tmp_path):
    whole = complete(recipe, tmp_path, lambda: catalog)
    other = replace(whole, architecture=replace(BASE, fusion_layers=2))
    with pytest.raises(
        DataError, match=re.escape("'tiny-base' has; leave [architecture] out, and the pack's is taken")
    ):
        load_base(other, tmp_path, lambda: catalog)
    other = replace(whole, pack=replace(PACK, layers=2))
    with pytest.raises(DataError, match=re.escape("'general_chat' has; leave [pack] out, and the pack's is taken")):
        build_model(other, tmp_path, 0, lambda: catalog)


def test_weights_that_are_still_to_come_are_asked_for(recipe, catalog, tmp_path):
    def to_come(one):
        said = replace(one.manifest, downloads={"far.safetensors": "https://example.org/far"}, files={})
        return replace(one, manifest=said)

    without = Catalog(tuple(to_come(one) if one.id == "tiny-base" else one for one in catalog.packs))
    whole = complete(recipe, tmp_path, lambda: without)
    with pytest.raises(PackError, match="yet to be downloaded; run `modularbase pack fetch tiny-base`"):
        load_base(whole, tmp_path, lambda: without)


def test_messages_are_read_by_the_base_it_stands_on_or_the_one_that_is_named(recipe, catalog, tiny_packs, tmp_path):
    for said in (recipe, replace(recipe, base=None, over="tiny-base")):
        assert reading_base(said, tmp_path, lambda: catalog).directory == tiny_packs["tiny-base"]
        assert reading_router(said, tmp_path, lambda: catalog).directory == tiny_packs["tiny-router"]
    (tmp_path / "set/base").mkdir(parents=True)
    (tmp_path / "set/router").mkdir()
    folder = replace(recipe, over="set")
    assert reading_base(folder, tmp_path, nothing_installed).directory == tmp_path / "set/base"
    assert reading_router(folder, tmp_path, nothing_installed).directory == tmp_path / "set/router"
    with pytest.raises(DataError, match=r"over is 'sets', but .*sets holds no base, and no pack 'sets' is installed"):
        reading_base(replace(recipe, over="sets"), tmp_path, lambda: catalog)
    with pytest.raises(ConfigError, match="has no `over`; name an installed base there, or the folder"):
        reading_base(replace(recipe, base=None), tmp_path, nothing_installed)


def test_a_pack_is_trained_and_shipped_into_the_manifest_that_is_there(recipe, catalog, tmp_path):
    chats = [{"prompt": f"add {i} and {i}", "response": f"that is {2 * i}"} for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    draft = tmp_path / "out/sums/manifest.json"
    draft.parent.mkdir(parents=True)
    draft.write_text(json.dumps(DRAFT))
    path, places = tmp_path / "sums.toml", {"data": tmp_path, "runs": tmp_path / "runs", "quiet": True}
    for _ in range(2):  # the second time the manifest describes the first time's network and files
        run_recipe(path, **places, compiled=False, installed=lambda: catalog)
        ship_recipe(path, **places, installed=lambda: catalog)
        made = check_pack(draft.parent)
        assert {key: value for key, value in made.to_dict().items() if key in DRAFT} == DRAFT
        assert made.architecture == PACK
    assert len(read_examples(draft.parent / "examples.json")) == 30
    base, router = (catalog.find(name).manifest for name in ("tiny-base", "tiny-router"))
    routing = read_routing(draft.parent / "routing.safetensors", ROUTER.key_size)
    assert routing.made_with == weights_name(base, router)
    assert Manifest.read(draft).files.keys() >= {"routing.safetensors", "examples.json"}


def test_packs_beside_it_are_asked_for_the_messages_that_are_theirs(catalog):
    assert messages_of_neighbours("tiny-base", "sums", lambda: catalog) == ["hi"]  # general chat's are nobody's
    assert messages_of_neighbours("tiny-base", "python_code", lambda: catalog) == []
    assert messages_of_neighbours("another-base", "sums", lambda: catalog) == []


def test_without_others_the_messages_of_packs_beside_it_are_left_to_them(recipe, catalog, tmp_path):
    own = [{"prompt": f"add {i} and {i}"} for i in range(40)]
    theirs = [f"sort the list of {i} words" for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, own)))
    base, router = (catalog.find(name).pack for name in ("tiny-base", "tiny-router"))
    recipe = replace(recipe, tokenizer=str(TOKENIZER))
    read = Reading(base, router, recipe, tmp_path, quiet=True)
    found = {}
    for neighbours in ([], theirs):
        write_keys(read, tmp_path, neighbours)
        made = read_routing(tmp_path / "routing.safetensors", ROUTER.key_size)
        found[len(neighbours)] = _reached(read, made, theirs)
    assert found[40] <= 0.1 < found[0]


def _reached(read, made, texts):
    background = apart(read.background.centres, made.against)
    return (scores(read.queries(texts), made.keys, made.scale, made.bias, background) >= 0.3).mean()


def test_a_pack_without_any_manifest_is_not_shipped(recipe, catalog, tmp_path):
    with pytest.raises(
        ConfigError, match=r"recipe 'sums' has no \[manifest\] and .*sums no manifest.json; give either"
    ):
        ship_recipe(tmp_path / "sums.toml", data=tmp_path, runs=tmp_path, quiet=True, installed=lambda: catalog)
    written(tmp_path, RECIPE.replace('ship = "out/sums"\n', ""))
    with pytest.raises(ConfigError, match="does not say where to `ship`; name the pack's directory"):
        ship_recipe(tmp_path / "sums.toml", data=tmp_path, runs=tmp_path, quiet=True, installed=lambda: catalog)
    assert not (tmp_path / "out").exists()
