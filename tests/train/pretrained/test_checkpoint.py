import json
from pathlib import Path

import pytest
from qwen2_directory import write_checkpoint

from modularbase_core.errors import WeightsError
from modularbase_core.train.pretrained.checkpoint import INDEX_FILE, open_checkpoint

SHARD = "model-00002-of-00003.safetensors"


def refused(folder: Path, told: str) -> None:
    with pytest.raises(WeightsError, match=told) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, files=3)
    (tmp_path / SHARD).unlink()
    refused(tmp_path, f"lacks {SHARD}, 1 of 3 files that {INDEX_FILE} names; download what is missing")


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refused(tmp_path, "holds neither model.safetensors nor .* weights in other formats, which may run code")


@pytest.mark.parametrize("kept", [3, 100, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    write_checkpoint(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:kept])
    refused(tmp_path, "is truncated.*download the checkpoint again")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": [64, 64]}, r"holds 256 bytes, but F32 \[64, 64\] needs 16384"),
        ({"dtype": "F64", "shape": [32]}, "has dtype F64; use one of F32, F16, BF16"),
        ({"dtype": "I8", "shape": [256]}, "has dtype I8; use one of F32, F16, BF16"),
        ({"data_offsets": [1 << 40, (1 << 40) + 256]}, "begins at byte .* but what is before it ends at"),
        ({"data_offsets": [-256, 0]}, "is malformed"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"].update(change)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    refused(tmp_path, told)


def index_of(folder: Path) -> dict[str, dict[str, str]]:
    value: dict[str, dict[str, str]] = json.loads((folder / INDEX_FILE).read_text())
    return value


def test_an_index_and_its_files_agree_on_where_tensors_are(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, files=3)
    value = index_of(tmp_path)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {**value["weight_map"], "extra": SHARD}}))
    refused(tmp_path, f"{SHARD} lacks 'extra', which {INDEX_FILE} looks for there")
    moved = {**value["weight_map"], "model.embed_tokens.weight": SHARD}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": moved}))
    refused(tmp_path, f"holds 'model.embed_tokens.weight', which {INDEX_FILE} looks for elsewhere")


@pytest.mark.parametrize(
    "named", [{}, [], {"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, {"a": "a.bin"}]
)
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, named: object) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": named}))
    refused(tmp_path, "does not say which file of the folder each tensor is in")
