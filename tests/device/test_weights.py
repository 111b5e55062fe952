import json
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file
from tiny_packs import BASE, PACK, ROUTER, manifest, write_pack

from modularbase_core.device.groups import dequantise_groups, quantise_groups
from modularbase_core.device.weights import (
    WeightsFile,
    in_blocks,
    read_routing,
    read_tensors,
    read_weights,
    stream_weights,
    write_weights,
)
from modularbase_core.errors import WeightsError
from modularbase_core.sdk.parameters import parameter_shapes
from modularbase_core.sdk.precision import stored_bytes
from modularbase_core.sdk.tensorfile import read_header

matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3).map(lambda groups: 32 * groups)),
    elements=st.floats(-60000, 60000, width=32),
)
vectors = arrays.arrays(
    np.float32, st.integers(0, 9), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
)


def random_weights(architecture=ROUTER):
    random = np.random.default_rng(1)
    shapes = parameter_shapes(architecture)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@given(values=matrices)
def test_quantised_values_stay_within_half_a_scale(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "quantised.safetensors"
    write_weights(path, {"w": values})
    scale = load_file(path)["w.scale"].astype(np.float32).repeat(32, -1)
    back = read_tensors(path, {"w": values.shape})["w"]
    # a scale of subnormal values may itself vanish: they are lost, by less than 1e-38
    assert (np.abs(back - values) <= scale * 0.5001 + 1e-38).all()
    # float16 steps by a thousandth, and by 6e-8 below its normal range, where it may be two steps
    assert (scale <= np.abs(values).reshape(len(values), -1, 32).max(-1).repeat(32, -1) / 127 * 1.001 + 1.2e-7).all()


@pytest.mark.parametrize(("form", "bits"), [("int8", 8), ("int4", 4)])
@given(values=matrices)
def test_what_kernels_make_of_a_file_is_what_the_file_holds(tmp_path_factory, form, bits, values):
    path = tmp_path_factory.getbasetemp() / "once.safetensors"
    write_weights(path, {"w": values}, form=form)
    held = read_tensors(path, {"w": values.shape})["w"]
    assert np.array_equal(dequantise_groups(*quantise_groups(held, bits)), held)


@given(values=matrices)
def test_a_byte_of_int4_holds_two_neighbours_each_plus_eight(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "int4.safetensors"
    write_weights(path, {"w": values}, form="int4")
    stored, (whole, scale) = load_file(path), quantise_groups(values, 4)
    low, high = whole[:, 0::2].astype(int) + 8, whole[:, 1::2].astype(int) + 8
    assert stored["w"].dtype == np.uint8
    assert (stored["w"] == low + 16 * high).all()
    assert (stored["w.scale"].dtype, stored["w.scale"].tolist()) == (np.float16, scale.tolist())
    assert np.array_equal(read_tensors(path, {"w": values.shape})["w"], dequantise_groups(whole, scale))


MIXTURE = replace(PACK, blocks=replace(PACK.blocks, experts=4), head_rank=16, vocabulary_size=64)


@pytest.mark.parametrize("architecture", [BASE, PACK, ROUTER, MIXTURE], ids=["base", "pack", "router", "mixture"])
@pytest.mark.parametrize("form", ["fp32", "fp16", "int8", "int4"])
def test_a_file_holds_each_tensor_as_its_form_says(tmp_path, architecture, form):
    tensors = random_weights(architecture)
    write_weights(tmp_path / "w", tensors, form=form)
    entries, back = read_header(tmp_path / "w"), read_weights(tmp_path / "w", architecture)
    exact = ("input_adapter.weight", "output_adapter.weight", "head.down.weight", "head.up.weight", "ffn.router.weight")
    for name, values in tensors.items():
        assert (back[name].dtype, back[name].shape) == (np.float32, values.shape)
        grouped = values.ndim > 1 and values.shape[-1] % 32 == 0
        integers = {"int8": grouped and "I8", "int4": grouped and not name.endswith(exact) and "U8"}.get(form)
        assert entries[name].dtype == (integers or ("F32" if form == "fp32" else "F16"))
        size = entries[name].size_bytes
        size += entries[f"{name}.scale"].size_bytes if integers else 0
        assert size == stored_bytes(name, values.shape, form)


def test_a_file_is_read_one_tensor_at_a_time(tmp_path):
    tensors = {f"t{number}": np.ones((64, 4096), np.float32) for number in range(16)}
    write_weights(tmp_path / "w", tensors, form="int4")
    file = WeightsFile(tmp_path / "w", dict.fromkeys(tensors, (64, 4096)))
    tracemalloc.start()
    assert all(np.allclose(file[name], 1) for name in file)
    file.check_values()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file) == 16
    assert peak < 4 << 20  # of 1 MiB each as float32, and what is made of it on the way
    with pytest.raises(KeyError):
        file["t0.scale"]


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8", "int4", "vector of integers", "odd place"])
def test_some_rows_are_those_of_the_whole(tmp_path, stored):
    values = np.random.default_rng(5).normal(size=(64, 96)).astype(np.float32)
    if stored == "vector of integers":
        whole, scale = quantise_groups(values[0])
        save_file({"w": whole, "w.scale": scale}, tmp_path / "w")
    elif stored == "odd place":
        header = {
            "a": {"dtype": "I8", "shape": [1, 32], "data_offsets": [0, 32]},
            "a.scale": {"dtype": "F16", "shape": [1, 1], "data_offsets": [32, 34]},
            "w": {"dtype": "F32", "shape": [64, 96], "data_offsets": [34, 34 + values.nbytes]},
        }
        text = json.dumps(header).encode() + b" "
        text += b" " * (len(text) % 2)
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + bytes(34) + values.tobytes())
    else:
        write_weights(tmp_path / "w", {"w": values}, form=stored)
    entries = read_header(tmp_path / "w")
    shapes = {name: one.values_shape for name, one in entries.items() if not name.endswith(".scale")}
    file = WeightsFile(tmp_path / "w", shapes)
    for rows in (slice(0, 32), slice(32, 64), slice(7, 8), slice(60, 100)):
        assert np.array_equal(file.rows("w", rows), file["w"][rows])
    if stored == "odd place":
        assert np.array_equal(file["w"], values)


@given(shape=st.lists(st.integers(1, 5000), min_size=1, max_size=3).map(tuple))
def test_blocks_of_rows_cover_a_tensor_in_steps_of_32(shape):
    blocks = list(in_blocks(shape))
    assert [one.start for one in blocks[1:]] == [one.stop for one in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].start < shape[0] <= blocks[-1].stop) == (0, True)
    assert not [one for one in blocks if (one.stop - one.start) % 32]


def test_values_are_looked_at_when_they_are_read(tmp_path):
    save_file({"a": np.ones(3, np.float32), "b": np.full(3, np.nan, np.float32)}, tmp_path / "w")
    file = WeightsFile(tmp_path / "w", {"a": (3,), "b": (3,)})
    assert file["a"].tolist() == [1, 1, 1]
    for read in (lambda: file["b"], file.check_values):
        with pytest.raises(WeightsError, match="'b' holds values that are not finite"):
            read()


@given(tensors=st.dictionaries(st.text(min_size=1, max_size=5), matrices | vectors, min_size=1, max_size=4))
@settings(max_examples=50)
def test_unquantised_tensors_come_back_bit_for_bit_and_the_library_reads_them(tmp_path_factory, tensors):
    tensors = {f"t{name}": values for name, values in tensors.items()}
    path = tmp_path_factory.getbasetemp() / "whole.safetensors"
    write_weights(path, tensors, form="fp32")
    ours = read_tensors(path, {name: values.shape for name, values in tensors.items()})
    theirs = load_file(path)
    for name, values in tensors.items():
        assert ours[name].tobytes() == values.tobytes() == theirs[name].tobytes()


def test_files_of_the_safetensors_library_are_read(tmp_path):
    save_file({"odd": np.ones(3, np.float16), "w": np.arange(6, dtype=np.float32).reshape(2, 3)}, tmp_path / "w")
    tensors = read_tensors(tmp_path / "w", {"odd": (3,), "w": (2, 3)})
    assert tensors["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["odd"].dtype == np.float32


@pytest.mark.parametrize("architecture", [BASE, PACK, ROUTER], ids=lambda a: a.kind)
def test_a_written_network_is_read_whole(tmp_path, architecture):
    tensors = random_weights(architecture)
    write_weights(tmp_path / "w", tensors)
    back = read_weights(tmp_path / "w", architecture)
    assert list(back) == list(tensors)
    for name, values in tensors.items():
        assert back[name].dtype == np.float32
        assert np.allclose(back[name], values, atol=0.03)


def test_matrices_are_aligned_in_the_file(tmp_path):
    write_weights(tmp_path / "w", random_weights())
    entries = read_header(tmp_path / "w")
    assert {entries[name].offset % 64 for name in ("inner.weight", "inner.weight.scale", "key.weight")} == {0}


def test_values_beyond_float16_are_kept_as_float32(tmp_path):
    write_weights(tmp_path / "w", {"big": np.array([1e6], np.float32)})
    assert read_tensors(tmp_path / "w", {"big": (1,)})["big"].tolist() == [1e6]


def test_routing_keys_come_back_exactly(tmp_path):
    directory = write_pack(tmp_path / "p", manifest("p", "domain", PACK))
    routing = read_routing(directory / "routing.safetensors", ROUTER.key_size)
    assert np.allclose(np.linalg.norm(routing.keys, axis=1), 1)
    assert (routing.scale, routing.bias) == (8.0, -4.0)


def test_what_a_pack_is_told_from_is_read_where_it_is(tmp_path):
    path = write_pack(tmp_path / "p", manifest("p", "domain", PACK)) / "routing.safetensors"
    assert read_routing(path, ROUTER.key_size).against is None
    against = np.eye(3, ROUTER.key_size, dtype=np.float32)
    save_file({**load_file(path), "against": against}, path)
    assert np.array_equal(read_routing(path, ROUTER.key_size).against, against)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.safetensors is missing; install the pack again"):
        read_weights(tmp_path / "none.safetensors", ROUTER)


@given(fraction=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_told(tmp_path_factory, fraction):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    write_weights(path, random_weights())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(WeightsError, match="truncated"):
        read_weights(path, ROUTER)


@given(content=st.binary(max_size=200))
def test_any_other_file_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_weights(path, ROUTER)


@given(
    entry=st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), st.none() | st.integers() | st.text())
    | st.integers()
    | st.lists(st.integers())
)
def test_a_malformed_header_entry_is_refused(tmp_path_factory, entry):
    path = tmp_path_factory.getbasetemp() / "malformed.safetensors"
    header = json.dumps({"norm.weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(WeightsError, match="malformed"):
        read_weights(path, ROUTER)


def broken(path: Path, **changes):
    tensors = random_weights()
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"key.bias": None}, r"w lacks the tensor 'key\.bias'"),
        ({"key.bias": np.zeros(3, np.float32)}, r"'key\.bias' has shape \[3\], expected \[16\]"),
        ({"key.bais": np.zeros(3, np.float32)}, r"unknown tensor 'key\.bais' \(did you mean 'key\.bias'\?\)"),
        ({"key.bias": np.zeros(16, np.float64)}, r"'key\.bias' has dtype F64; use one of F32, F16, I8, U8"),
        ({"key.bias": np.zeros(16, np.int8)}, r"'key\.bias' is I8 with shape \[16\].*multiple of 32"),
        ({"key.weight": np.zeros((16, 32), np.int8)}, r"lacks 'key\.weight\.scale'"),
        (
            {"key.weight": np.zeros((16, 32), np.int8), "key.weight.scale": np.zeros((16, 2), np.float16)},
            r"'key\.weight\.scale' is F16 \[16, 2\], expected F16 \[16, 1\]",
        ),
        ({"key.bias": np.zeros(8, np.uint8)}, r"'key\.bias' is U8 with shape \[8\].*multiple of 16 .*store it as F16"),
        (
            {"key.weight": np.zeros((16, 32), np.uint8)},
            r"shape \[16, 64\] as U8 \[16, 32\], two values a byte, expected \[16, 32\]; correct",
        ),
        (
            {"key.weight": np.zeros((16, 15), np.uint8)},
            r"shape \[16, 30\] as U8 \[16, 15\], two values a byte, expected \[16, 32\]; correct",
        ),
        (
            {"key.weight": np.zeros((16, 16), np.uint8)},
            r"lacks 'key\.weight\.scale', the scales of 'key\.weight', which is U8; save the weights again",
        ),
        (
            {"key.weight": np.zeros((16, 16), np.uint8), "key.weight.scale": np.zeros((16, 2), np.float16)},
            r"'key\.weight\.scale' is F16 \[16, 2\], expected F16 \[16, 1\]; save the weights again",
        ),
        (
            {"key.weight": np.zeros((16, 16), np.uint8), "key.weight.scale": np.zeros((16, 1), np.int8)},
            r"'key\.weight\.scale' is I8 \[16, 1\], expected F16 \[16, 1\]; save the weights again",
        ),
        (
            {"key.weight": np.zeros((16, 16), np.uint8), "key.weight.scale": np.full((16, 1), np.inf, np.float16)},
            r"'key\.weight' holds values that are not finite",
        ),
        ({"key.bias": np.full(16, np.nan, np.float32)}, r"'key\.bias' holds values that are not finite"),
    ],
)
def test_a_wrong_tensor_is_told_in_one_sentence(tmp_path, changes, told):
    with pytest.raises(WeightsError, match=told) as caught:
        read_weights(broken(tmp_path / "w", **changes), ROUTER)
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(WeightsError, match="not finite"):
        write_weights(tmp_path / "w", {"w": np.array([np.inf], np.float32)})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_weights(tmp_path / "w", {"w": np.zeros(1, np.float32)})
    before = (tmp_path / "w").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WeightsError, match="No space left on device"):
        write_weights(tmp_path / "w", {"w": np.ones(1, np.float32)})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("w", before)]


def in_rows(tensors, count=3):
    return lambda name: (tensors[name][first : first + count] for first in range(0, len(tensors[name]), count))


@pytest.mark.parametrize("form", ["int8", "int4", "fp16", "fp32"])
def test_what_is_streamed_reads_as_what_is_written_at_once(tmp_path, form):
    random = np.random.default_rng(2)
    shapes = {"w": (8, 64), "odd": (5, 33), "v": (5,), "u": (8, 96)}
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    stream_weights(tmp_path / "streamed", shapes, in_rows(tensors), form=form)
    got, exact = read_tensors(tmp_path / "streamed", shapes), [*shapes] if form == "fp32" else []
    write_weights(tmp_path / "whole", tensors, form=form)
    wanted = read_tensors(tmp_path / "whole", shapes)
    for name, values in tensors.items():
        if len(shapes[name]) == 1 or name in exact:
            assert np.array_equal(got[name], values)
        elif form == "fp16":
            assert np.array_equal(got[name], values.astype(np.float16).astype(np.float32))
        else:
            assert np.array_equal(got[name], wanted[name])
    entries = read_header(tmp_path / "streamed")
    assert not [name for name in ("w", "w.scale") if name in entries and entries[name].offset % 64]


@pytest.mark.parametrize(("form", "stored"), [("int8", "F16"), ("int4", "F16"), ("fp16", "F16"), ("fp32", "F32")])
def test_what_is_to_be_exact_is_streamed_as_no_integers(tmp_path, form, stored):
    tensors = {"w": np.ones((4, 64), np.float32)}
    stream_weights(tmp_path / "w", {"w": (4, 64)}, in_rows(tensors), form=form, exact=("w",))
    assert {name: one.dtype for name, one in read_header(tmp_path / "w").items()} == {"w": stored}


@pytest.mark.parametrize(("value", "told"), [(np.nan, "not finite"), (70000.0, "beyond float16")])
def test_what_cannot_be_stored_leaves_no_file(tmp_path, value, told):
    values = np.zeros((6, 32), np.float32)
    values[5, 3] = value
    with pytest.raises(WeightsError, match=told):
        stream_weights(tmp_path / "w", {"w": values.shape}, in_rows({"w": values}), form="fp16")
    assert not list(tmp_path.iterdir())


def test_a_large_tensor_is_streamed_in_little_memory(tmp_path):
    row = np.ones((16, 4096), np.float32)
    tracemalloc.start()
    stream_weights(tmp_path / "w", {"w": (16 * 64, 4096)}, lambda name: (row for _ in range(64)), form="int8")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20  # of 16 MiB as float32; some rows in all their forms, and the scales
