"""A tiny base, its chat, its router and a pack, from recipes to pack directories that load."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from modularbase_core.errors import ArchitectureError, ConfigError, DataError
from modularbase_core.graph.networks import Base
from modularbase_core.sdk.manifest import TOKENIZER_FILE
from modularbase_core.sdk.testing import check_pack
from modularbase_core.text.controls import Controls
from modularbase_core.train import router, run
from modularbase_core.train.recipe import read_recipe
from modularbase_core.train.router import Hidden, understand_messages
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
WINDOWS = "[[0.5, 32], [0.5, 64]]"
COMMON = f'batch_tokens = 128\nwindows = {WINDOWS}\nwarmup_steps = 1\ntokenizer = "tokenizer.json"\n'
CHAT = '[[mix]]\nfiles = ["chat.jsonl"]\ntokens = 2000\n'
RECALL = "recall_tokens = 600"
STAGES = ("base", "chat", "router", "sums")
LABELLED = '[[mix]]\nfiles = ["labelled.jsonl"]\ntokens = 40\n'


def manifest(pack_id: str, kind: str) -> str:
    base = "" if kind == "base" else 'base = "b"\nbase_compatibility = ["1.0"]\n'
    return f'[manifest]\nid = "{pack_id}"\nname = "{pack_id}"\nversion = "1.0.0"\ntype = "{kind}"\n{base}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def shipped(folder: Path) -> Path:
    """The folder after every stage."""
    return every_stage(folder)


def every_stage(root: Path) -> Path:
    for name in STAGES:
        run_recipe(root / f"{name}.toml", data=root, runs=root / "runs", quiet=True, compiled=False)
        ship_recipe(root / f"{name}.toml", data=root, runs=root / "runs", quiet=True)
    return root


def written(root: Path) -> Path:
    """Write texts, a tokenizer and the recipes of all stages."""
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
        "router": 'stage = "router"\nbase = "base"\ntokens = 512\nover = "out"\nship = "out/router"\n'
        + COMMON.replace("128", "256")
        + LABELLED
        + LABELLED.replace("mix", "others"),
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


def test_every_stage_ships_a_pack_that_checks(shipped: Path) -> None:
    for name in STAGES:
        assert check_pack(shipped / "out" / name).version == "1.0.0"
        load_shipped(shipped / "out" / name)
    assert (shipped / "out/sums/routing.safetensors").exists()
    assert len(json.loads((shipped / "out/sums/examples.json").read_text())) == 20


def test_the_same_recipes_give_the_same_bits_and_ship_the_same_files(
    shipped: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = every_stage(written(tmp_path_factory.mktemp("again")))
    for name in STAGES:
        one, other = (
            torch.load(root / "runs" / name / "checkpoint.pt", weights_only=True)["network"]
            for root in (shipped, again)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    files = sorted(path.relative_to(shipped / "out") for path in (shipped / "out").rglob("*") if path.is_file())
    assert len(files) == 12
    for file in files:
        assert (shipped / "out" / file).read_bytes() == (again / "out" / file).read_bytes(), file


def test_a_run_is_recorded_beside_its_checkpoint(shipped: Path) -> None:
    record = json.loads((shipped / "runs/chat/run.json").read_text())
    assert record["recipe"]["base"] == "base"
    assert record["recipe"]["compile"] is False
    assert record["recipe"]["weight_decay"] == 0.01, "a default, too"
    assert record["recipe"]["pack"]["kind"] == "pack"
    assert (record["steps"], record["tokens"]) == (5, 640)
    assert 0 < record["loss"] < 10
    (session,) = record["sessions"]
    assert (session["first_step"], session["last_step"]) == (0, 5)
    assert session["versions"]["torch"] == torch.__version__
    assert session["machine"]["threads"] == torch.get_num_threads()
    assert record["seconds"] == session["seconds"] > 0


def test_a_run_has_the_recipes_threads_and_a_fixed_order_of_sums(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []

    def now() -> tuple[int, bool]:
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    before = now()
    monkeypatch.setattr(run, "stage_of", lambda recipe: lambda recipe, **more: seen.append(now()))
    for threads in (3, 0):
        recipe = replace(read_recipe(folder / "base.toml"), threads=threads)
        run_recipe(recipe, data=folder, runs=tmp_path, quiet=True)
    assert seen == [(3, True), (before[0], True)]
    assert now() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, while it compiles
def test_compiled_code_on_several_threads_gives_the_same_bits_each_time(folder: Path, tmp_path: Path) -> None:
    recipe = replace(read_recipe(folder / "base.toml"), windows=((1.0, 64),), batch_tokens=1024, tokens=8192, threads=2)
    paths = [run_recipe(recipe, data=folder, runs=tmp_path / name, quiet=True) for name in "ab"]
    one, other = (torch.load(path, weights_only=True)["network"] for path in paths)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_too_little_memory_is_told_before_a_run_unless_it_is_quiet(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "stage_of", lambda recipe: lambda recipe, **more: None)
    monkeypatch.setattr("modularbase_core.train.plan.free_memory", lambda **more: 10**6)
    for quiet in (False, True):
        run_recipe(folder / "base.toml", data=folder, runs=tmp_path, quiet=quiet)
    told = capsys.readouterr().err
    assert told.startswith("note: recipe 'base' needs about ")
    assert told.count("\n") == 1


def test_general_chat_may_be_a_stage_of_its_own(shipped: Path, tmp_path: Path) -> None:
    """`chat` starts from the trunk of the base, unless told."""
    (tmp_path / "base").symlink_to(shipped / "runs/base")
    recipe = replace(read_recipe(shipped / "chat.toml"), stage="chat", start=None, ship=str(tmp_path / "out"))
    checkpoint = run_recipe(recipe, data=shipped, runs=tmp_path, quiet=True, compiled=False)
    same, got = (torch.load(path, weights_only=True) for path in (shipped / "runs/chat/checkpoint.pt", checkpoint))
    assert all(torch.equal(value, got["network"][name]) for name, value in same["network"].items())
    assert check_pack(ship_recipe(recipe, data=shipped, runs=tmp_path, quiet=True)).type == "system"
    domain = replace(recipe, manifest=None, ship=str(shipped / "out/sums"))
    with pytest.raises(ConfigError, match=r"is of stage 'chat', but .*sums.manifest\.json says type 'domain'"):
        ship_recipe(domain, data=shipped, runs=tmp_path, quiet=True)


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
        (("tokens = 1280", "tokenz = 1280"), "unknown key 'tokenz' (did you mean 'tokens'"),
        (('stage = "base"', 'stage = "bass"'), "stage is 'bass'"),
        (("[0.5, 32]", "[0.5, 33]"), "not a multiple of the window 33"),
        (('name = "base"', "name ="), "is not TOML"),
        (("tokens = 1280", "tokens = 5"), "less than one batch"),
        (("hidden_size = 64", "hidden_size = -64"), "must be positive"),
        (("tokens = 1280", 'tokens = "many"'), "bad.toml: tokens is 'many'; expected a whole number"),
        (("tokens = 1280", "tokens = true"), "tokens is True; expected a whole number"),
        (("recall_tokens = 600", 'recall_tokens = "a"'), "recall_tokens is 'a'; expected a whole number"),
        (("recall_tokens = 600", 'response_only = "no"'), "response_only is 'no'; expected true or false"),
        (("recall_tokens = 600", 'folder = "here"'), "unknown key 'folder'"),
        (("recall_tokens = 600", 'examples = "a"'), "examples is 'a'; expected a list of tables"),
        (
            ("recall_tokens = 600", 'learns = ["input"]'),
            "stage 'base' cannot learn 'input' alone; use some of embedding",
        ),
        (("recall_tokens = 600", 'learns = ["fusion"]'), "the rest must be there already; name `base` and `start`"),
        (("[[mix]]", "[mix]"), "mix is {'files': ['chat.jsonl'], 'tokens': 2000}; expected a list of tables"),
        (('["chat.jsonl"]', '"a.jsonl"'), "bad.toml: mix: files is 'a.jsonl'; expected a list of strings"),
        (
            ("[router]", "[[router]]"),
            "router is [{'base_hidden_size': 64, 'key_size': 16, 'kind': 'router', 'width': 32}]; expected a table",
        ),
        ((WINDOWS, "[[1.0]]"), "windows is [[1.0]]; expected a list of pairs [share, length]"),
        ((WINDOWS, "[[1.0, 64.5]]"), "expected a list of pairs [share, length]"),
        ((WINDOWS, "[[1.0, 0]]"), "a window is [1, 0]; both must be positive"),
        ((WINDOWS, "[[1.5, 32], [-0.5, 64]]"), "a window is [-0.5, 64]; both must be positive"),
        ((WINDOWS, "[]"), "the shares of windows add up to 0; make them add up to 1"),
        ((WINDOWS, "[[0.5, 32], [0.1, 64]]"), "the shares of windows add up to 0.6"),
        (("warmup_steps = 1", "warmup_steps = 0"), "warmup_steps is 0; it must be positive"),
        (("warmup_steps = 1", "decay_share = 0.0"), "decay_share is 0.0; it must be positive"),
        (("batch_tokens = 128", "batch_tokens = 0"), "batch_tokens is 0; it must be positive"),
        ((RECALL, 'optimiser = "muan"'), "optimiser is 'muan'; use one of muon, adamw (did you mean 'muon'?)"),
        ((RECALL, 'schedule = "linear"'), "schedule is 'linear'; use one of wsd, cosine"),
        ((RECALL, 'precision = "int8"'), "precision is 'int8'; use one of bf16, fp16, fp32"),
        ((RECALL, 'parallel = "dp"'), "parallel is 'dp'; use one of ddp, fsdp (did you mean 'ddp'?)"),
        ((RECALL, 'device = "tpu"'), "device is 'tpu'; use one of auto, cpu, cuda"),
        ((RECALL, 'logs = "wandb"'), "logs is 'wandb'; expected a list of strings"),
        ((RECALL, 'logs = ["wandb", "mlflow"]'), "logs is 'mlflow'; use one of tensorboard, wandb, none"),
        ((RECALL, "clip_norm = 0"), "clip_norm is 0; it must be positive"),
        ((RECALL, "matrix_rate = nan"), "matrix_rate is nan; it must be positive"),
        ((RECALL, "other_rate = inf"), "other_rate is inf; it must be positive"),
        ((RECALL, "weight_decay = -0.1"), "weight_decay is -0.1; it must be at least 0"),
        ((RECALL, "threads = -1"), "threads is -1; it must be at least 0"),
        ((RECALL, "accumulate = 0"), "accumulate is 0; it must be positive"),
        ((RECALL, "accumulate = 4"), "batch_tokens 128 holds 2 windows of 64, which 4 parts (accumulate) do not share"),
        ((RECALL, "compile = 1"), "compile is 1; expected true or false"),
        (('stage = "base"', 'stage = "chat"'), "the manifest of stage chat says type 'base'; general chat is of type"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(folder: Path, tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text((folder / "base.toml").read_text().replace(*change))
    with pytest.raises((ConfigError, ArchitectureError), match=re.escape(told)):
        read_recipe(path)


def test_a_window_longer_than_the_trained_one_is_refused(folder: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "long.toml", (folder / "base.toml").read_text()
    text = text.replace("tokens = 1280", "tokens = 4096").replace("batch_tokens = 128", "batch_tokens = 2048")
    path.write_text(text.replace(WINDOWS, "[[1.0, 2048]]"))
    with pytest.raises(ConfigError, match="a window of 2048 tokens is longer than the trained window of 1024"):
        read_recipe(path)
    path.write_text(text.replace(WINDOWS, "[[1.0, 1024]]"))
    assert read_recipe(path).phases() == [(0, 1024)]


def test_a_run_on_a_base_of_another_architecture_is_refused(folder: Path) -> None:
    runs = folder / "runs-of-another"
    run_recipe(folder / "base.toml", data=folder, runs=runs, quiet=True, compiled=False)
    for name, change in (
        ("chat", ("fusion_layers = 1", "fusion_layers = 2")),
        ("chat", ("\nlayers = 1", "\nlayers = 2")),
        ("router", ("ffn_size = 64", "ffn_size = 96")),
    ):
        other = folder / "other.toml"
        other.write_text((folder / f"{name}.toml").read_text().replace(*change))
        with pytest.raises(DataError, match=r"base.checkpoint\.pt was trained with another architecture"):
            run_recipe(other, data=folder, runs=runs, quiet=True, compiled=False)


def test_an_unfinished_run_is_not_shipped(folder: Path) -> None:
    runs, longer = folder / "unfinished", folder / "longer.toml"
    run_recipe(folder / "base.toml", data=folder, runs=runs, quiet=True, compiled=False)
    text = (folder / "base.toml").read_text().replace("out/base", "out/longer")
    longer.write_text(text.replace("tokens = 1280", "tokens = 2560"))
    with pytest.raises(DataError, match="has 10 of 20 steps; finish that run before you ship it"):
        ship_recipe(longer, data=folder, runs=runs, quiet=True)
    longer.write_text(text.replace("ffn_size = 64", "ffn_size = 96"))
    with pytest.raises(DataError, match="was trained with another architecture"):
        ship_recipe(longer, data=folder, runs=runs, quiet=True)
    assert not (folder / "out/longer").exists()


def test_a_retrained_tokenizer_is_shipped(folder: Path) -> None:
    runs, recipe = folder / "retrained", folder / "retrained.toml"
    recipe.write_text((folder / "base.toml").read_text().replace("out/base", "out/retrained"))
    run_recipe(recipe, data=folder, runs=runs, quiet=True, compiled=False)
    shipped = folder / "out/retrained" / TOKENIZER_FILE
    shipped.parent.mkdir(parents=True)
    shipped.write_text("of an earlier run")
    ship_recipe(recipe, data=folder, runs=runs, quiet=True)
    assert shipped.read_bytes() == (folder / "tokenizer.json").read_bytes()
    where_it_ships = recipe.read_text().replace('"tokenizer.json"', f'"out/retrained/{TOKENIZER_FILE}"')
    recipe.write_text(where_it_ships)
    ship_recipe(recipe, data=folder, runs=runs, quiet=True)
    check_pack(folder / "out/retrained")


def test_the_router_reads_a_control_token_in_a_message_as_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def watched(base: Base, tokenizer: Tokenizer, texts: list[str], *, quiet: bool, controls: Controls) -> Hidden:
        seen.append(len(tokenizer.encode("<|end|>").ids) > 1)
        return understand_messages(base, tokenizer, texts, quiet=quiet, controls=controls)

    monkeypatch.setattr(router, "understand_messages", watched)
    for name in ("base", "router"):
        run_recipe(folder / f"{name}.toml", data=folder, runs=tmp_path, quiet=True, compiled=False)
    assert seen == [True]


def test_a_recipe_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.toml")


def _weights(runs: Path) -> list[np.ndarray]:
    from modularbase_core.train.checkpoints import part_of

    return [value.numpy() for value in part_of(runs / "base/checkpoint.pt", "base.").values()]
