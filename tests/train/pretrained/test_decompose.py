"""Whole checkpoints taken apart: what comes out computes what went in."""

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from apart import logits_of, taken_apart
from qwen2_directory import GOLDEN, GOLDEN_ROWS, golden_tokens, write_checkpoint
from safetensors.torch import load_file, save_file

from modularbase_core.device.weights import stream_weights
from modularbase_core.errors import ConfigError, ModularBaseError, TokenizerError
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.sdk.testing import check_pack
from modularbase_core.train.pretrained.checkpoint import open_checkpoint
from modularbase_core.train.pretrained.config import divide, read_config
from modularbase_core.train.pretrained.layers import Sources

STORED = load_file(Path(__file__).with_name("golden.safetensors"))


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("split", [(1, 1), (2, 1), (1, 2)])
def test_logits_are_those_that_transformers_gave(tmp_path: Path, name: str, split: tuple[int, int]) -> None:
    write_checkpoint(tmp_path / "in", **GOLDEN[name])
    packs = taken_apart(
        tmp_path / "in", tmp_path / "out", form="fp32", understanding_layers=split[0], fusion_layers=split[1]
    )
    got = logits_of(packs, golden_tokens())[-GOLDEN_ROWS:]
    assert (got - STORED[name]).abs().max() < 1e-4
    assert STORED[name].abs().max() > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tmp_path: Path, seed: int, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    changes = {"tie_word_embeddings": tied, "num_hidden_layers": 3 + seed, "num_key_value_heads": 1 + seed % 2}
    write_checkpoint(tmp_path / "in", seed=seed, files=1 + seed, **changes)
    packs = taken_apart(tmp_path / "in", tmp_path / "out", form="fp32")
    network = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "in", dtype=torch.float32).eval()
    tokens = golden_tokens(300)
    with torch.no_grad():
        wanted = network(torch.tensor([tokens])).logits[0]
    assert (logits_of(packs, tokens) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("files", [1, 3])
def test_weights_of_any_float_and_any_number_of_files_are_the_same(
    tmp_path: Path, dtype: torch.dtype, files: int
) -> None:
    tensors = write_checkpoint(tmp_path / "in", dtype=dtype, files=files)
    packs = taken_apart(tmp_path / "in", tmp_path / "out", form="fp32")
    base, chat = (load_file(packs[name] / "model.safetensors") for name in ("base", "general_chat"))
    assert torch.equal(base["embedding.weight"], tensors["model.embed_tokens.weight"])
    third = "model.layers.2"
    for part, rows in (("q", slice(0, 64)), ("k", slice(64, 96)), ("v", slice(96, 128))):
        assert torch.equal(chat["experts.layers.1.qkv.weight"][rows], tensors[f"{third}.self_attn.{part}_proj.weight"])
        assert torch.equal(chat["experts.layers.1.qkv.bias"][rows], tensors[f"{third}.self_attn.{part}_proj.bias"])
    assert torch.equal(base["fusion.layers.0.ffn.gate_up.weight"][96:], tensors["model.layers.3.mlp.up_proj.weight"])
    assert torch.equal(chat["input_adapter.weight"], torch.eye(64))


@pytest.mark.parametrize(("form", "error"), [("fp16", 5e-3), ("int8", 0.15), ("int4", 0.8)])
def test_every_form_is_a_sound_set(tmp_path: Path, form: str, error: float) -> None:
    write_checkpoint(tmp_path / "in", **GOLDEN["tied"])
    packs = taken_apart(tmp_path / "in", tmp_path / "out", form=form)
    for directory in packs.values():
        check_pack(directory)
    got, wanted = logits_of(packs, golden_tokens())[-GOLDEN_ROWS:], STORED["tied"]
    assert (got - wanted).norm() < error * wanted.norm()
    stored = load_file(packs["general_chat"] / "model.safetensors")
    dtypes = {"fp16": torch.float16, "int8": torch.int8, "int4": torch.uint8}
    assert stored["experts.layers.0.out.weight"].dtype == dtypes[form]
    assert stored["experts.layers.0.qkv.bias"].dtype == torch.float32
    assert torch.equal(stored["output_adapter.weight"].float(), torch.eye(64))


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out is there already; name a new folder"):
        taken_apart(tmp_path / "in", tmp_path / "out")


def spoil_weights(name: str, value: float):
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[-1] = value
        save_file(tensors, folder / "model.safetensors")

    return spoil


def edit_json(file: str, **changes: object):
    def edit(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**value, **changes}))

    return edit


def retouch(change):
    """Change the tensors of a checkpoint."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


FAULTS = {
    "no folder": (lambda folder: shutil.rmtree(folder), "in is no folder; name one that holds a checkpoint"),
    "another model": (edit_json("config.json", model_type="llama"), "model_type is 'llama'; only 'qwen2' is read"),
    "one layer less": (edit_json("config.json", num_hidden_layers=3), r"holds the tensor 'model\.layers\.3\."),
    "another width": (edit_json("config.json", intermediate_size=128), r"mlp.gate_proj.weight' has shape \[96, 64\]"),
    "a small vocabulary": (edit_json("config.json", vocab_size=200), r"embed_tokens.weight' has shape \[320, 64\]"),
    "a missing tensor": (retouch(lambda all: all.pop("model.norm.weight")), "lacks the tensor 'model.norm.weight'"),
    "an adapter": (
        retouch(lambda all: all.update({"model.layers.0.self_attn.q_proj.lora_A": torch.ones(1)})),
        "merge adapters into it first",
    ),
    "infinity": (spoil_weights("model.layers.1.mlp.up_proj.weight", float("inf")), "holds values that are not finite"),
    "too large": (spoil_weights("model.layers.3.mlp.up_proj.weight", 1e6), "beyond float16.*store it as fp32"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "a strange tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is no tokenizer of the"),
    "a strange template": (
        edit_json("tokenizer_config.json", chat_template="{{ messages[0].content | upper }}"),
        "its chat template leaves out what the user says.*--template",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_nothing_is_written(tmp_path: Path, fault: str) -> None:
    spoil, told = FAULTS[fault]
    write_checkpoint(tmp_path / "in")
    spoil(tmp_path / "in")
    with pytest.raises(ModularBaseError, match=told) as caught:
        taken_apart(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"in"}


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in", vocab_size=260)
    with pytest.raises(TokenizerError, match="token ids up to 267, but the checkpoint's vocab_size is 260"):
        taken_apart(tmp_path / "in", tmp_path / "out")


def test_a_template_of_the_users_own_goes_before_the_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in")
    (tmp_path / "in/tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1/0 }}"}))
    plain = {role: {"open": f"<|im_start|>{role}: ", "close": "<|im_end|>"} for role in ("system", "user", "assistant")}
    around = {"open": "<|endoftext|>", "close": ""}
    own = {"begin": "", "system": "", "roles": plain, "document": around, "stops": ["<|im_end|>"]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    packs = taken_apart(tmp_path / "in", tmp_path / "out", template=tmp_path / "own.json")
    assert json.loads((packs["base"] / "tokenizer/template.json").read_text()) == own


def test_what_a_template_uses_becomes_a_control_token(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in")
    value = json.loads((tmp_path / "in/tokenizer.json").read_text())
    for token in value["added_tokens"]:
        token["special"] = token["content"] == "<|endoftext|>"
    (tmp_path / "in/tokenizer.json").write_text(json.dumps(value))
    packs = taken_apart(tmp_path / "in", tmp_path / "out")
    written = json.loads((packs["base"] / "tokenizer/tokenizer.json").read_text())
    assert {token["content"]: token["special"] for token in written["added_tokens"]} == {
        "<|endoftext|>": True,
        "<|im_start|>": True,
        "<|im_end|>": True,
        "<tool_call>": False,
    }


def test_the_memory_is_that_of_some_rows_not_of_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in", vocab_size=16384, hidden_size=256, intermediate_size=512, num_attention_heads=8)
    base, pack = divide(read_config(tmp_path / "in"), understanding_layers=1, fusion_layers=1)
    sources = Sources(open_checkpoint(tmp_path / "in"), base, pack)
    tracemalloc.start()
    stream_weights(tmp_path / "out", parameter_shapes(base), sources.rows, form="int8")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20  # the embedding alone is 16 MiB as float32, the base 23 MiB
