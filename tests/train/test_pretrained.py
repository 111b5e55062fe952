"""From a checkpoint to a chat: the set that was made of it is installed, compiled and asked."""

import importlib.util
import json
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit
import torch
from apart import taken_apart
from eager import EXACT, Eager
from qwen2_directory import write_checkpoint
from tiny_packs import catalog_of, manifest, write_pack

from modularbase_core.config import EngineConfig
from modularbase_core.host import Host, build
from modularbase_core.packs.catalog import discover, plugin_manager
from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.testing import check_pack
from modularbase_core.text.template import Message, render
from modularbase_core.train.checkpoints import part_of
from modularbase_core.train.pretrained.project import Names, licence_of, name_of
from modularbase_core.train.recipe import read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import load_shipped, ship_recipe
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Routed, Token

GREEDY = SamplingConfig(temperature=0.0, max_tokens=16)
QUESTION = Message("user", "the user in the hall")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, seed=11, dtype=torch.bfloat16)
    (folder / "LICENSE").write_text("Do as you like.")
    (folder / "README.md").write_text("---\nlanguage:\n- en\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def project(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("project") / "out"
    taken_apart(checkpoint, out, window_tokens=256)
    return out


@pytest.fixture(scope="module")
def packs(project: Path) -> dict[str, Path]:
    folder = project / "modularbase_tiny_qwen"
    names = {"tiny-qwen": "base", "tiny-qwen-router": "router", "tiny-qwen-chat": "general_chat"}
    return {name: folder / directory for name, directory in names.items()}


@pytest.fixture(scope="module")
def host(packs: dict[str, Path], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    network = catalog_of(packs).find("tiny-qwen-chat").manifest.network
    songs = manifest("songs", "domain", network, base="tiny-qwen")
    directory = write_pack(tmp_path_factory.mktemp("songs"), songs)
    (directory / "routing.safetensors").unlink()  # its keys are made of its examples
    with build(EngineConfig(cache_dir=cache, **EXACT), catalog=catalog_of({**packs, "songs": directory})) as host:
        yield host


def tokens_of(host: Host, messages: list[Message], **more: object) -> tuple[list[int], str]:
    events = list(host.chat(messages, GREEDY, **more))  # type: ignore[arg-type]
    text = "".join(event.text for event in events if isinstance(event, Token | Finished))
    return [event.token_id for event in events if isinstance(event, Token)], text


def test_an_answer_is_the_greedy_one_of_torch_in_the_checkpoints_own_words(host: Host, packs: dict[str, Path]) -> None:
    eager = Eager({name: packs[name] for name in ("tiny-qwen", "tiny-qwen-chat")}, "tiny-qwen")
    stops, messages = host.tokenizer.controls.stops, [QUESTION]
    for _ in range(2):  # the second turn goes on from what is in the caches
        prompt = render(messages, host.tokenizer, generate=True).token_ids
        assert prompt[0] == host.tokenizer.control("<|im_start|>")
        said, text = tokens_of(host, messages)
        whole = eager.greedy(prompt, "tiny-qwen-chat", GREEDY.max_tokens, -1)
        wanted = whole[: next((i for i, token in enumerate(whole) if token in stops), None)]
        assert said == wanted
        messages += [Message("assistant", text), Message("user", "and the other one?")]
        if host.tokenizer.encode(text) != said:
            break  # random tokens need not be how their text is cut


@pytest.mark.slow
def test_an_answer_is_the_greedy_one_of_transformers(host: Host, checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = transformers.Qwen2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    library = transformers.AutoTokenizer.from_pretrained(checkpoint)
    prompt = library.apply_chat_template(
        [{"role": "user", "content": QUESTION.content}], add_generation_prompt=True, return_dict=False
    )
    assert prompt == render([QUESTION], host.tokenizer, generate=True).token_ids
    with torch.no_grad():
        out = network.generate(torch.tensor([prompt]), max_new_tokens=GREEDY.max_tokens, do_sample=False)
    wanted = out[0, len(prompt) :].tolist()
    said, _ = tokens_of(host, [QUESTION])
    assert said == [token for token in wanted if token not in host.tokenizer.controls.stops]


def test_a_pack_finds_its_messages_by_the_router_that_is_not_trained(host: Host) -> None:
    events = list(host.chat([Message("user", "hi")], GREEDY))
    routed = next(event for event in events if isinstance(event, Routed))
    assert host.lineup.refused == {}
    assert set(routed.scores) == {"songs"}
    said, _ = tokens_of(host, [QUESTION], packs=["songs"])
    assert said


def test_fusion_alone_is_trained_over_an_imported_set(packs: dict[str, Path], tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "the hall"}, {"role": "assistant", "content": "in the hall there is a user"}]
    (tmp_path / "talk.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 60)
    base = shutil.copytree(packs["tiny-qwen"], tmp_path / "base")
    (tmp_path / "fusion.toml").write_text(
        """name = "fusion"
stage = "base"
base = "tiny-qwen"
start = "tiny-qwen-chat"
learns = ["fusion"]
tokens = 1024
batch_tokens = 256
windows = [[1.0, 64]]
response_only = true
ship = "base"

[[mix]]
files = ["talk.jsonl"]
tokens = 2000
"""
    )
    places = {"data": tmp_path, "runs": tmp_path / "runs", "quiet": True, "installed": lambda: catalog_of(packs)}
    checkpoint = run_recipe(tmp_path / "fusion.toml", compiled=False, **places)  # type: ignore[arg-type]  # places differ in type
    ship_recipe(tmp_path / "fusion.toml", **places)  # type: ignore[arg-type]
    assert check_pack(base).id == "tiny-qwen"
    assert (base / "tokenizer/template.json").read_text() == (
        packs["tiny-qwen"] / "tokenizer/template.json"
    ).read_text()
    before, after = load_shipped(packs["tiny-qwen"]).state_dict(), part_of(checkpoint, "base.")
    for name, value in before.items():
        assert torch.equal(value, after[name]) != name.startswith(("fusion.", "norm.")), name


def test_a_router_is_trained_over_an_imported_set(packs: dict[str, Path], tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": f"{text} {number}", "domain": domain, "intent": domain, "lang": "en"})
        for number in range(20)
        for domain, text in (("songs", "sing in the hall"), ("general", "the user is here"))
    ]
    (tmp_path / "messages.jsonl").write_text("\n".join(lines))
    (tmp_path / "router.toml").write_text(
        """name = "router"
stage = "router"
base = "tiny-qwen"
over = "tiny-qwen"
tokens = 128
batch_tokens = 32
windows = [[1.0, 32]]
ship = "router"

[[mix]]
files = ["messages.jsonl"]
tokens = 40

[[others]]
files = ["messages.jsonl"]
domains = ["general"]
tokens = 20

[router]
kind = "router"
base_hidden_size = 64
width = 32
key_size = 16

[manifest]
id = "tiny-qwen-router"
version = "1.1.0"
type = "router"
base = "tiny-qwen"
base_compatibility = ["1.0"]
"""
    )
    places = {"data": tmp_path, "runs": tmp_path / "runs", "quiet": True, "installed": lambda: catalog_of(packs)}
    run_recipe(tmp_path / "router.toml", compiled=False, **places)  # type: ignore[arg-type]  # places differ in type
    assert check_pack(ship_recipe(tmp_path / "router.toml", **places)).version == "1.1.0"  # type: ignore[arg-type]


def test_the_project_offers_its_packs_as_a_plugin_does(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = tomlkit.parse((project / "pyproject.toml").read_text()).unwrap()["project"]
    assert described["name"] == "modularbase-tiny-qwen"
    (module,) = described["entry-points"]["modularbase"].values()
    spec = importlib.util.spec_from_file_location(module, project / module / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module, plugin)
    spec.loader.exec_module(plugin)
    manager = plugin_manager()
    manager.register(plugin, name="tiny-qwen")
    catalog = discover(manager, [])
    assert [one.id for one in catalog.packs] == ["tiny-qwen", "tiny-qwen-router", "tiny-qwen-chat"]
    assert {one.manifest.licence for one in catalog.packs} == {"apache-2.0"}


def test_pip_can_build_the_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hatchling.build import build_wheel

    monkeypatch.chdir(project)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        held = set(wheel.namelist())
    for name in ("base/model.safetensors", "base/tokenizer/template.json", "router/manifest.json"):
        assert f"modularbase_tiny_qwen/{name}" in held
    assert any(name.endswith("licenses/LICENSE") for name in held)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Qwen2.5-0.5B-Instruct", "qwen2-5-0-5b-instruct"),
        ("模型", "pretrained"),
        ("--A__b--", "a-b"),
        ("a" * 99, "a" * 60),
    ],
)
def test_a_set_is_named_after_its_folder(tmp_path: Path, folder: str, name: str) -> None:
    assert name_of(tmp_path / folder) == name
    assert Names(name).module.isidentifier()


def test_a_model_card_may_name_no_licence(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == ""
    (tmp_path / "README.md").write_text("# A model\nlicense: mit\n")
    assert licence_of(tmp_path) == ""


def test_the_recipes_of_the_page_are_recipes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/pretrained.md").read_text(encoding="utf-8")
    recipes = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert len(recipes) == 2
    for text in recipes:
        (tmp_path / "one.toml").write_text(text)
        recipe = read_recipe(tmp_path / "one.toml")
        assert recipe.base == "my-qwen"
        if recipe.manifest is not None:
            Manifest.from_dict(dict(recipe.manifest))
