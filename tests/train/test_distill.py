"""A student learns from a teacher: from its logits, or from what it writes."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chat_service import Service, running
from tiny_packs import BASE, PACK, catalog_of
from tokenizers import Tokenizer

from modularbase_core.errors import ConfigError, DataError
from modularbase_core.packs.catalog import Catalog
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train import distill
from modularbase_core.train.checkpoints import steps_done
from modularbase_core.train.recipe import Recipe, Teacher, read_recipe
from modularbase_core.train.run import run_recipe
from modularbase_core.train.ship import ship_recipe
from modularbase_core.train.tokenizer import train_tokenizer

RECIPE = """\
name = "student"
stage = "distill"
base = "tiny-base"
start = "general_chat"
tokens = 1280
batch_tokens = 128
windows = [[1.0, 64]]
warmup_steps = 1
compile = false
response_only = true
[[mix]]
files = ["chats.jsonl"]
tokens = 2000
[teacher]
kind = "modularbase"
base = "tiny-base"
pack = "python_code"
top_k = 32
prompts = 10
group = 4
longest = 6
"""


@pytest.fixture
def catalog(tiny_packs: dict[str, Path]) -> Catalog:
    return catalog_of(tiny_packs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chats = [{"prompt": f"add {i} and {i}", "response": f"that is {2 * i}"} for i in range(60)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    (tmp_path / "student.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as one:
        yield one


def recipe_of(folder: Path, teacher: Teacher | dict[str, object] | None = None, **change: object) -> Recipe:
    recipe = replace(read_recipe(folder / "student.toml"), **change)
    if isinstance(teacher, Teacher):
        return replace(recipe, teacher=teacher)
    return replace(recipe, teacher=replace(recipe.teacher, **(teacher or {})))


def run(folder: Path, catalog: Catalog, recipe: Recipe, runs: str = "runs") -> Path:
    return run_recipe(recipe, data=folder, runs=folder / runs, quiet=True, installed=lambda: catalog)


def network(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["network"]
    return state


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def divergences(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What each step's loss says of the divergence from the teacher."""
    seen: list[float] = []

    class Noted(distill.SoftLoss):
        def __call__(self, ids: torch.Tensor, learn: torch.Tensor) -> torch.Tensor:
            loss = super().__call__(ids, learn)
            seen.append(self.figures()["divergence"])
            return loss

    monkeypatch.setattr(distill, "SoftLoss", Noted)
    return seen


def test_a_student_comes_nearer_to_a_teacher_of_our_own_kind(folder, catalog, divergences):
    run(folder, catalog, recipe_of(folder, tokens=128 * 60, matrix_rate=0.02))
    assert len(divergences) == 60
    assert sum(divergences[-5:]) < 0.5 * sum(divergences[:5])
    assert not (folder / "runs/student/teacher.jsonl").exists()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(folder, catalog, divergences, monkeypatch):
    whole = network(run(folder, catalog, recipe_of(folder)))
    walk = distill.SoftLoss.__call__
    count = len(divergences)

    def stopping(self, ids, learn):
        if len(divergences) == count + 4:
            raise KeyboardInterrupt
        return walk(self, ids, learn)

    monkeypatch.setattr(distill.SoftLoss, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(folder, catalog, recipe_of(folder), "again")
    monkeypatch.setattr(distill.SoftLoss, "__call__", walk)
    assert steps_done(folder / "again/student/checkpoint.pt") == 4
    resumed = network(run(folder, catalog, recipe_of(folder), "again"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_base_and_its_trunk_may_be_the_student(folder, catalog, tiny_packs, divergences):
    tokenizer = str(tiny_packs["tiny-base"] / "tokenizer/tokenizer.json")
    blocks = replace(BASE.blocks, ffn_size=64)
    smaller = {"architecture": replace(BASE, blocks=blocks), "pack": replace(PACK, blocks=blocks)}
    recipe = recipe_of(folder, base=None, start=None, tokenizer=tokenizer, ship="base", tokens=128 * 40, **smaller)
    recipe = replace(recipe, manifest={"id": "small", "version": "1.0.0", "type": "base"})
    run(folder, catalog, recipe)
    assert sum(divergences[-5:]) < sum(divergences[:5])
    directory = ship_recipe(recipe, data=folder, runs=folder / "runs", quiet=True, installed=lambda: catalog)
    assert check_pack(directory).type == "base"


def test_a_run_may_be_the_teacher(folder, catalog, tiny_packs, divergences):
    tokenizer = str(tiny_packs["tiny-base"] / "tokenizer/tokenizer.json")
    blocks = replace(BASE.blocks, ffn_size=128)
    larger = {"architecture": replace(BASE, blocks=blocks), "pack": replace(PACK, blocks=blocks)}
    recipe = recipe_of(folder, base=None, start=None, tokenizer=tokenizer, tokens=256, **larger)
    run(folder, catalog, replace(recipe, name="larger", stage="base", teacher=None))
    run(folder, catalog, recipe_of(folder, {"base": "larger", "pack": "larger"}, tokens=256))
    assert len(divergences) == 2
    (folder / "runs/larger/run.json").unlink()
    with pytest.raises(DataError, match=r"larger/checkpoint.pt was trained with another architecture"):
        run(folder, catalog, recipe_of(folder, {"base": "larger", "pack": "larger"}, name="other"))


def test_what_a_teacher_of_our_own_writes_is_kept_and_learnt(folder, catalog):
    recipe = recipe_of(folder, {"mode": "text"})
    run(folder, catalog, recipe)
    told = lines(folder / "runs/student/teacher.jsonl")
    assert len(told) == 10
    assert {one["source"] for one in told} == {"modularbase"}
    assert {one["model"] for one in told} == {"tiny-base + python_code"}
    taken = lines(folder / "runs/student/responses.jsonl")
    assert [(one["prompt"], one["response"]) for one in taken] == [
        (one["prompt"], one["response"]) for one in told if one["response"].strip()
    ]
    prompts = {json.loads(line)["prompt"] for line in (folder / "chats.jsonl").read_text().splitlines()}
    assert {one["prompt"] for one in told} <= prompts


@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_answers_are_the_same_however_often_the_teacher_was_stopped(folder, catalog, drawn):
    recipe = recipe_of(folder, {"mode": "text", "sampling_temperature": drawn})
    run(folder, catalog, recipe)
    file = folder / "runs/student/teacher.jsonl"
    whole = {one["prompt"]: one["response"] for one in lines(file)}
    kept = file.read_bytes().splitlines(keepends=True)
    again = folder / "again/student/teacher.jsonl"
    again.parent.mkdir(parents=True)
    again.write_bytes(b"".join(kept[:5]) + kept[5][:11])
    run(folder, catalog, recipe, "again")
    assert {one["prompt"]: one["response"] for one in lines(again)} == whole


def test_a_part_of_the_mixs_own_words_may_stay(folder, catalog):
    recipe = recipe_of(folder, {"mode": "text", "weight": 0.25})
    of_answers = distill.mix_of_answers(recipe, folder / "teacher.jsonl")
    assert [(one.files, one.tokens) for one in of_answers.mix] == [
        ((str(folder / "teacher.jsonl"),), 320),
        (("chats.jsonl",), 960),
    ]


def openai(service: Service, **more: object) -> Teacher:
    return Teacher(kind="openai", url=service.url, model="big", prompts=10, **{"retries": 0, **more})


def test_a_service_is_asked_and_what_it_says_is_learnt(folder, catalog, service):
    run(folder, catalog, recipe_of(folder, openai(service)))
    assert sorted(one["prompt"] for one in lines(folder / "runs/student/responses.jsonl")) == sorted(service.prompts)
    assert len(service.asked) == 10
    run(folder, catalog, recipe_of(folder, openai(service)))
    (folder / "runs/student/checkpoint.pt").unlink()
    run(folder, catalog, recipe_of(folder, openai(service)))
    assert len(service.asked) == 10


def test_another_model_or_question_is_asked_anew(folder, catalog, service):
    run(folder, catalog, recipe_of(folder, openai(service)))
    (folder / "runs/student/checkpoint.pt").unlink()
    run(folder, catalog, recipe_of(folder, openai(service, system="Be kind.")))
    assert len(service.asked) == 20


def test_a_key_that_is_missing_is_asked_for_only_while_answers_are(folder, catalog, service):
    recipe = recipe_of(folder, openai(service, key_variable="THE_KEY"))
    with pytest.raises(ConfigError, match="10 of 10 answers of 'big' are missing, and there is no key to ask with"):
        run(folder, catalog, recipe)
    distill.ask_service(recipe, data=folder, runs=folder / "runs", quiet=True, key="secret")
    assert set(service.keys) == {"Bearer secret"}
    assert steps_done(run(folder, catalog, recipe)) == 10


def test_a_mix_without_conversations_leaves_nothing_to_ask(folder, catalog, service):
    (folder / "chats.jsonl").write_text('{"text": "a page"}\n')
    with pytest.raises(DataError, match="the mix holds no conversation, so there is nothing to ask the teacher"):
        run(folder, catalog, recipe_of(folder, openai(service)))


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"base": "nothing"}, "recipe 'student': teacher.base is 'nothing', but .* no pack 'nothing' is installed"),
        ({"pack": "tiny-base"}, "teacher.pack is 'tiny-base', a pack of type base; name one of type system or domain"),
    ],
)
def test_a_teacher_that_is_not_there_is_told(folder, catalog, teacher, told):
    with pytest.raises(DataError, match=told):
        run(folder, catalog, recipe_of(folder, teacher))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('kind = "oracle"', r"teacher.kind is 'oracle'; use one of modularbase, huggingface, openai"),
        ('kind = "huggingface"', "a teacher of kind 'huggingface' needs `model`; give it"),
        (
            'kind = "openai"\nurl = "example.org"\nmodel = "m"',
            "teacher.url is 'example.org'; write it as https://HOST/v1",
        ),
        ('kind = "openai"\nurl = "https://me:pass@example.org"\nmodel = "m"', "holds a user or password"),
        ('kind = "openai"\nurl = "https://example.org"\nmodel = "m"\nmode = "logits"', "'openai' does not give"),
        ('kind = "modularbase"\nbase = "b"\npack = "p"\ntop_k = 0', "teacher.top_k is 0; it must be positive"),
        ('kind = "modularbase"\nbase = "b"\npack = "p"\nweight = 2', "teacher.weight is 2; it must be over 0 and at"),
        ('kind = "modularbase"\nbase = "b"\npack = "p"\nmod = "x"', r"unknown key 'mod' \(did you mean 'mode'\?\)"),
        ('kind = "modularbase"\nbase = "b"\npack = "p"\nmode = "words"', "teacher.mode is 'words'; use one of auto"),
        ('kind = "modularbase"\nbase = "b"\npack = "p"\nretries = -1', "teacher.retries is -1; it must be at least 0"),
    ],
)
def test_a_teacher_that_makes_no_sense_is_told(folder, text, told):
    (folder / "student.toml").write_text(RECIPE.partition("[teacher]")[0] + "[teacher]\n" + text + "\n")
    with pytest.raises(ConfigError, match=told):
        read_recipe(folder / "student.toml")


def test_a_recipe_without_a_teacher_is_told(folder):
    (folder / "student.toml").write_text(RECIPE.partition("[teacher]")[0])
    with pytest.raises(ConfigError, match=r"recipe 'student' has no \[teacher\]; say there who is learnt from"):
        read_recipe(folder / "student.toml")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, tiny_packs: dict[str, Path]) -> Path:
    """A tiny Llama with the tiny base's tokenizer, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(config).save_pretrained(root)
    tokenizer = tiny_packs["tiny-base"] / "tokenizer/tokenizer.json"
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), eos_token="<|end|>").save_pretrained(root)
    return root


def llama(folder: Path, **more: object) -> Teacher:
    given = {"top_k": 32, "prompts": 6, "group": 3, "longest": 5, **more}
    return Teacher(kind="huggingface", model=str(folder), **given)


def test_a_student_comes_nearer_to_a_model_of_hugging_faces_with_its_tokens(folder, catalog, foreign, divergences):
    run(folder, catalog, recipe_of(folder, llama(foreign), tokens=128 * 40))
    assert sum(divergences[-5:]) < 0.7 * sum(divergences[:5])


def test_the_models_logits_are_those_of_each_document_by_itself(foreign, tiny_packs):
    from transformers import AutoModelForCausalLM

    from modularbase_core.train.teachers.huggingface import HuggingFaceTeacher

    teacher = HuggingFaceTeacher(foreign, llama(foreign, top_k=8192), border=7, vocabulary=8192)
    ids = torch.randint(8, 8000, (2, 20), generator=torch.Generator().manual_seed(0))
    ids[0, [0, 9]] = ids[1, 4] = 7
    rows = torch.tensor([3, 8, 12, 19, 20, 23, 30])
    top = teacher.top(ids, rows)
    model = AutoModelForCausalLM.from_pretrained(foreign).eval()
    for row, (window, first, at) in zip(
        range(7), [(0, 0, 3), (0, 0, 8), (0, 9, 12), (0, 9, 19), (1, 0, 0), (1, 0, 3), (1, 4, 10)], strict=True
    ):
        with torch.no_grad():
            wanted = model(ids[window : window + 1, first : at + 1]).logits[0, -1].softmax(0)
        got = torch.zeros(8192).scatter(0, top.tokens[row], top.shares[row])
        assert torch.allclose(got, wanted, atol=1e-5)


def test_models_that_bend_their_logits_are_asked_whole(foreign, tiny_packs, monkeypatch):
    from modularbase_core.train.teachers.huggingface import HuggingFaceTeacher

    ids, rows = torch.arange(8, 28)[None], torch.tensor([2, 17])
    apart = HuggingFaceTeacher(foreign, llama(foreign), border=7, vocabulary=8192)
    whole = HuggingFaceTeacher(foreign, llama(foreign), border=7, vocabulary=8192)
    whole._apart = False
    first, second = apart.top(ids, rows), whole.top(ids, rows)
    assert apart._apart is True
    assert torch.equal(first.tokens, second.tokens)
    assert torch.allclose(first.shares, second.shares, atol=1e-5)


def test_a_model_with_other_tokens_writes_responses(folder, catalog, foreign, divergences):
    other = shutil.copytree(foreign, folder / "other")
    train_tokenizer(["add one and one", "that is two"], 300, other / "tokenizer.json")
    Tokenizer.from_file(str(other / "tokenizer.json"))
    run(folder, catalog, recipe_of(folder, llama(other)))
    assert not divergences
    told = lines(folder / "runs/student/teacher.jsonl")
    assert len(told) == 6
    assert {(one["source"], one["model"]) for one in told} == {("huggingface", str(other))}
    with pytest.raises(ConfigError, match=r"teacher.mode is 'logits', but teacher and student read other tokens"):
        run(folder, catalog, recipe_of(folder, llama(other, mode="logits")), "again")


def test_a_folder_of_no_model_is_told(folder, catalog, foreign):
    with pytest.raises(DataError, match=r"nowhere holds no config.json; name the folder of a model"):
        run(folder, catalog, recipe_of(folder, llama(Path("nowhere"))))
    broken = shutil.copytree(foreign, folder / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"broken cannot be loaded as a causal language model \(.*\); check its files"):
        run(folder, catalog, recipe_of(folder, llama(broken)))


def test_without_the_library_a_model_of_hugging_faces_is_refused(folder, catalog, monkeypatch):
    import importlib

    load = importlib.import_module

    def without(name: str, *rest: str | None) -> object:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ConfigError, match=r"needs transformers \(No module .*\); run `pip install 'transformers>="):
        run(folder, catalog, recipe_of(folder, llama(folder)))
