"""A pack of GELU experts that adds to the head, from recipe to shipped directory to answers."""

import json
from dataclasses import replace
from pathlib import Path

from eager import EXACT, Eager
from feeding import difference, fed, new_sequence, random_tokens
from tiny_packs import catalog_of

from modularbase_core.config import EngineConfig
from modularbase_core.host import Parts
from modularbase_core.host.builtin import hooks_of
from modularbase_core.packs.catalog import plugin_manager
from modularbase_core.sdk.tensorfile import read_header
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train.recipe import read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import ship_recipe

RECIPE = """\
name = "sums"
stage = "pack"
base = "tiny-base"
ship = "out/sums"
tokens = 1280
batch_tokens = 256
windows = [[1.0, 64]]
warmup_steps = 1
[[mix]]
files = ["chats.jsonl"]
tokens = 1280
[[examples]]
files = ["chats.jsonl"]
tokens = 30
[pack]
kind = "pack"
base_hidden_size = 64
layers = 1
head_rank = 32
vocabulary_size = 8192
[pack.blocks]
hidden_size = 64
heads = 2
kv_heads = 1
head_size = 32
ffn_size = 32
experts = 4
activation = "gelu"
[pack.window]
trained_tokens = 128
block_tokens = 32
recent_tokens = 48
sink_tokens = 16
[manifest]
id = "sums"
version = "0.1.0"
base = "tiny-base"
licence = "MIT"
"""


def test_a_mixture_with_its_own_part_of_the_head_is_trained_shipped_and_run(
    tiny_packs: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    chats = [{"prompt": f"add {i} and {i}", "response": f"that is {2 * i}"} for i in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    (tmp_path / "sums.toml").write_text(RECIPE)
    places = {"data": tmp_path, "runs": tmp_path / "runs", "quiet": True, "installed": lambda: catalog_of(tiny_packs)}
    run_recipe(tmp_path / "sums.toml", compiled=False, **places)
    directory = ship_recipe(tmp_path / "sums.toml", **places)
    check_pack(directory)
    stored = {name: entry.dtype for name, entry in read_header(directory / "model.safetensors").items()}
    assert {stored["head.up.weight"], stored["experts.layers.0.ffn.gate_up"]} == {"I8"}
    packed = ship_recipe(replace(read_recipe(tmp_path / "sums.toml"), ship="out/sums4", dtype="int4"), **places)
    check_pack(packed)
    stored = {name: entry.dtype for name, entry in read_header(packed / "model.safetensors").items()}
    assert {stored["experts.layers.0.out.weight"], stored["experts.layers.0.ffn.gate_up"]} == {"U8"}
    assert {stored["input_adapter.weight"], stored["head.norm.weight"], stored["head.up.weight"]} == {"F16"}
    packs = {**tiny_packs, "sums": directory}
    config = EngineConfig(cache_dir=cache, hot_tokens=4096, **EXACT)
    parts = Parts(config, catalog_of(packs), None, hooks_of(catalog_of(packs), plugin_manager()))
    token_ids = random_tokens(40)
    got = fed(parts.engine(), new_sequence(parts), token_ids, "sums", [20, 19, 1])
    assert difference(got, Eager(packs, "tiny-base").logits(token_ids, "sums")[-1]) <= 1e-5
