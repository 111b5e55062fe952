import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file
from tiny_packs import BASE, PACK, ROUTER, manifest, write_pack

from modularbase_core.device.weights import (
    read_routing,
    read_tensors,
    read_weights,
    stream_weights,
    write_weights,
)
from modularbase_core.errors import WeightsError
from modularbase_core.sdk.parameters import parameter_shapes
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
    # float16 steps by a thousandth, and by 6e-8 below its normal range
    assert (scale <= np.abs(values).reshape(len(values), -1, 32).max(-1).repeat(32, -1) / 127 * 1.001 + 6e-8).all()


@given(tensors=st.dictionaries(st.text(min_size=1, max_size=5), matrices | vectors, min_size=1, max_size=4))
@settings(max_examples=50)
def test_unquantised_tensors_come_back_bit_for_bit_and_the_library_reads_them(tmp_path_factory, tensors):
    tensors = {f"t{name}": values for name, values in tensors.items()}
    path = tmp_path_factory.getbasetemp() / "whole.safetensors"
    write_weights(path, tensors, quantise=False)
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
        ({"key.bias": np.zeros(16, np.float64)}, r"'key\.bias' has dtype F64; use one of F32, F16, I8"),
        ({"key.bias": np.zeros(16, np.int8)}, r"'key\.bias' is I8 with shape \[16\].*multiple of 32"),
        ({"key.weight": np.zeros((16, 32), np.int8)}, r"lacks 'key\.weight\.scale'"),
        (
            {"key.weight": np.zeros((16, 32), np.int8), "key.weight.scale": np.zeros((16, 2), np.float16)},
            r"'key\.weight\.scale' is F16 \[16, 2\], expected F16 \[16, 1\]",
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


@pytest.mark.parametrize("form", ["int8", "fp16", "fp32"])
def test_what_is_streamed_reads_as_what_is_written_at_once(tmp_path, form):
    random = np.random.default_rng(2)
    shapes = {"w": (7, 64), "odd": (5, 33), "v": (5,), "u": (8, 96)}
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    stream_weights(tmp_path / "streamed", shapes, in_rows(tensors), form=form)
    got, exact = read_tensors(tmp_path / "streamed", shapes), {"int8": [], "fp16": [], "fp32": [*shapes]}[form]
    write_weights(tmp_path / "whole", tensors, quantise=form == "int8")
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
