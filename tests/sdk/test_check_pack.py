import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_packs import BASE, PACK, ROUTER, manifest, write_pack, write_tiny_set

from modularbase_core.device.weights import read_tensors, read_weights, write_weights
from modularbase_core.errors import ManifestError, WeightsError
from modularbase_core.sdk.manifest import Manifest, write_manifest
from modularbase_core.sdk.tensorfile import read_header
from modularbase_core.sdk.testing import check_pack
from modularbase_core.sdk.values import check_finite, read_rows

PYTHON = manifest("python_code", "domain", PACK)


def test_every_pack_of_the_tiny_set_passes(tmp_path):
    for id, directory in write_tiny_set(tmp_path).items():
        assert check_pack(directory).id == id


@pytest.fixture
def python(tmp_path):
    return write_pack(tmp_path / "python", manifest("python_code", "domain", PACK))


def test_a_changed_file_is_told(python):
    path = python / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"model\.safetensors has SHA-256 .*, but the manifest says"):
        check_pack(python)


def test_a_missing_file_is_told(python):
    (python / "model.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"model\.safetensors is missing, but the manifest lists it"):
        check_pack(python)


def test_an_unlisted_file_is_told(python):
    value = json.loads((python / "manifest.json").read_text())
    del value["files"]["routing.safetensors"]
    (python / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(ManifestError, match=r"routing\.safetensors is not listed under files"):
        check_pack(python)


def test_weights_of_another_architecture_are_told(python):
    write_manifest(python, manifest("python_code", "domain", dataclasses.replace(PACK, layers=2)))
    with pytest.raises(WeightsError, match=r"lacks the tensor 'experts\.layers\.1\.attention_norm\.weight'"):
        check_pack(python)


def test_examples_that_cannot_be_read_are_told(python):
    (python / "examples.json").write_text("{}")
    write_manifest(python, PYTHON)
    with pytest.raises(ManifestError, match="holds dict; expected a list"):
        check_pack(python)


def test_a_pack_that_describes_no_network_is_told(python):
    write_manifest(python, Manifest(id="python_code", version="1.0.0"))
    with pytest.raises(ManifestError, match="describes no network, so it cannot run"):
        check_pack(python)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.bin", "may run code when it is read, but a pack is data"),
        ("model.PT", "may run code when it is read, but a pack is data"),
        ("notes/setup.py", "may run code when it is read, but a pack is data"),
        ("keys.pkl", "may run code when it is read, but a pack is data"),
        ("logo", r"is no file of a pack \(safetensors, JSON, Markdown or text\); remove it"),
        (".hidden", r"is no file of a pack"),
        ("more.safetensors", "is not listed under files; remove it"),
        ("tokenizer/tokens.json", "is there, but pack tokens are not supported by this version; remove it"),
    ],
)
def test_what_is_no_data_of_a_pack_is_refused(python, name, told):
    (python / name).parent.mkdir(exist_ok=True)
    (python / name).write_text("[]")
    with pytest.raises(ManifestError, match=told):
        check_pack(python)


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "credits.txt"])
def test_what_people_read_may_lie_there_unlisted(python, name):
    (python / name).write_text("for people")
    assert check_pack(python).id == "python_code"


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_that_are_not_finite_are_told(python, value, dtype):
    tensors = load_file(python / "model.safetensors")
    norm = tensors["experts.layers.0.ffn_norm.weight"].astype(dtype)
    norm[-1] = value
    save_file({**tensors, "experts.layers.0.ffn_norm.weight": norm}, python / "model.safetensors")
    write_manifest(python, PYTHON)
    with pytest.raises(WeightsError, match=r"'experts\.layers\.0\.ffn_norm\.weight' holds values that are not finite"):
        check_pack(python)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_scale_that_is_not_finite_is_told(python, form):
    write_weights(python / "model.safetensors", read_weights(python / "model.safetensors", PACK), form=form)
    write_manifest(python, PYTHON)
    assert check_pack(python).id == "python_code"
    tensors = load_file(python / "model.safetensors")
    tensors["experts.layers.0.out.weight.scale"][0, 0] = np.inf
    save_file(tensors, python / "model.safetensors")
    write_manifest(python, PYTHON)
    with pytest.raises(
        WeightsError, match=r"'experts\.layers\.0\.out\.weight\.scale' holds values that are not finite"
    ):
        check_pack(python)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scale": None}, r"lacks 'experts\.layers\.0\.out\.weight\.scale', the scales of .*, which is U8; save"),
        (
            {"": np.zeros((64, 31), np.uint8)},
            r"has shape \[64, 62\] as U8 \[64, 31\], two values a byte, expected \[64, 64\]",
        ),
        ({"scale": np.zeros((64, 1), np.float16)}, r"is F16 \[64, 1\], expected F16 \[64, 2\]; save the weights again"),
    ],
)
def test_int4_that_does_not_fit_is_told(python, changes, told):
    path, name = python / "model.safetensors", "experts.layers.0.out.weight"
    write_weights(path, read_weights(path, PACK), form="int4")
    tensors = {**load_file(path), **{f"{name}.{key}".rstrip("."): value for key, value in changes.items()}}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    write_manifest(python, PYTHON)
    with pytest.raises(WeightsError, match=told) as caught:
        check_pack(python)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@given(
    st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True) | st.floats(width=32), min_size=1, max_size=40)
)
def test_finite_is_what_numpy_calls_so(tmp_path_factory, dtype, values):
    path = tmp_path_factory.getbasetemp() / "w.safetensors"
    with np.errstate(over="ignore"):
        array = np.array(values, np.float32).astype(dtype)
    save_file({"w": array}, path)
    if np.isfinite(array).all():
        check_finite(path, read_header(path))
    else:
        with pytest.raises(WeightsError, match="not finite"):
            check_finite(path, read_header(path))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keys": 2 * np.eye(2, 16, dtype=np.float32)}, "row 0 of 'keys' has the length 2, expected 1"),
        ({"keys": np.zeros((1, 16), np.float32)}, "row 0 of 'keys' has the length 0, expected 1"),
        ({"keys": np.zeros((0, 16), np.float32)}, r"'keys' has shape \[0, 16\], expected \[any, 16\]"),
        ({"keys": np.eye(2, 8, dtype=np.float32)}, r"'keys' has shape \[2, 8\], expected \[any, 16\]"),
        ({"scale": np.full(1, np.nan, np.float32)}, "'scale' holds values that are not finite"),
        ({"scale": np.full(1, -2, np.float32)}, "'scale' is -2; it must be positive"),
        ({"more": np.ones(1, np.float32)}, "unknown tensor 'more'"),
        ({"against": 2 * np.eye(2, 16, dtype=np.float32)}, "row 0 of 'against' has the length 2, expected 1"),
        ({"against": np.eye(2, 8, dtype=np.float32)}, r"'against' has shape \[2, 8\], expected \[any, 16\]"),
    ],
)
def test_routing_keys_that_no_query_can_meet_are_told(python, changes, told):
    path = python / "routing.safetensors"
    save_file({**load_file(path), **changes}, path)
    write_manifest(python, PYTHON)
    with pytest.raises(WeightsError, match=told):
        check_pack(python, key_size=16)


def test_quantised_routing_keys_are_taken(python):
    rows = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    one = np.ones(1, np.float32)
    write_weights(python / "routing.safetensors", {"keys": rows, "scale": one, "bias": one})
    write_manifest(python, PYTHON)
    assert check_pack(python, key_size=32).id == "python_code"


def test_few_values_are_read_alike_with_and_without_numpy(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    for form in ("fp32", "fp16", "int8", "int4"):
        path = tmp_path / form
        write_weights(path, {"w": values}, form=form)
        rows = read_rows(path, read_header(path), "w")
        assert np.array_equal(np.array(rows, np.float32), read_tensors(path, {"w": (3, 64)})["w"])


def test_what_a_pack_is_told_from_may_travel_beside_its_keys(python):
    path = python / "routing.safetensors"
    save_file({**load_file(path), "against": np.eye(3, 16, dtype=np.float32)}, path)
    write_manifest(python, PYTHON)
    assert check_pack(python, key_size=16).id == "python_code"


def test_a_base_is_not_routed_to(tmp_path):
    base = write_pack(tmp_path / "base", manifest("tiny-base", "base", BASE))
    (base / "routing.safetensors").write_bytes(b"")
    with pytest.raises(ManifestError, match="nothing is routed to a base"):
        check_pack(base)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "is no tokenizer of the tokenizers library"),
        ('{"model": {"vocab": {"a": true}}}', "is no tokenizer of the tokenizers library"),
        ('{"model": {"vocab": {"a": 8192}}}', "has token ids up to 8192, but the network's vocabulary_size is 8192"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 9000}]}', "has token ids up to 9000"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": ["<s>"]}', "is no tokenizer of the tokenizers library"),
    ],
)
def test_a_tokenizer_that_the_base_cannot_use_is_told(tmp_path, content, told):
    base = write_pack(tmp_path / "base", manifest("tiny-base", "base", BASE))
    (base / "tokenizer/tokenizer.json").write_text(content)
    write_manifest(base, manifest("tiny-base", "base", BASE))
    with pytest.raises(ManifestError, match=told):
        check_pack(base)


def test_downloaded_weights_are_checked_where_they_are_stored(python, tmp_path):
    described = dataclasses.replace(PYTHON, downloads={"model.safetensors": "https://example.org/python.safetensors"})
    digest = write_manifest(python, described).files["model.safetensors"]
    store = tmp_path / "weights"
    store.mkdir()
    (python / "model.safetensors").rename(store / digest)
    with pytest.raises(ManifestError, match=r"model\.safetensors of pack 'python_code' is not downloaded yet"):
        check_pack(python)
    assert check_pack(python, store=store).downloads == described.downloads
    (store / digest).write_bytes(b"other")
    with pytest.raises(WeightsError, match="has SHA-256"):
        check_pack(python, store=store)


@pytest.mark.parametrize("code", [np.float16, np.float32])
def test_the_values_of_a_large_pack_are_looked_at_within_a_second(tmp_path, code):
    path = tmp_path / "w.safetensors"
    save_file({"w": np.full((64 << 20) // np.dtype(code).itemsize, np.finfo(code).max, code)}, path)
    begun = time.process_time()
    check_finite(path, read_header(path))
    assert time.process_time() - begun < 1


def test_a_base_without_a_tokenizer_is_told(tmp_path):
    base = write_pack(tmp_path / "base", manifest("tiny-base", "base", BASE))
    (base / "tokenizer/tokenizer.json").unlink()
    write_manifest(base, manifest("tiny-base", "base", BASE))
    with pytest.raises(ManifestError, match=r"tokenizer\.json is missing; a base brings its tokenizer"):
        check_pack(base)


def test_checking_and_listing_packs_imports_neither_numpy_nor_torch_nor_tvm(tmp_path):
    router = write_pack(tmp_path / "router", manifest("tiny-router", "router", ROUTER))
    program = (
        "import sys; from pathlib import Path\n"
        "from modularbase_core.packs.catalog import discover\n"
        "from modularbase_core.sdk.testing import check_pack\n"
        "discover(); check_pack(Path(sys.argv[1]))\n"
        "print([name for name in ('numpy', 'torch', 'tvm', 'tvm_ffi', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(router)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
