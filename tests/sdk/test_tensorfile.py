import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from modularbase_core.device.weights import read_tensors
from modularbase_core.errors import WeightsError
from modularbase_core.sdk.tensorfile import read_header, read_metadata
from modularbase_core.sdk.values import check_finite

SIZES = {"F32": 4, "F16": 2, "I8": 1, "U8": 1, "F64": 8}


def laid_out(tensors):
    """Return header entries, one tensor after the other, and how long the data is."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return header, end


def as_file(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


A, B = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, {"dtype": "I8", "shape": [3], "data_offsets": [8, 11]}
SOUND = {"a": A, "b": B}


def refused(path, content, told):
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=told) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)


def test_a_sound_file_is_read_with_its_texts(tmp_path):
    (tmp_path / "w").write_bytes(as_file({**SOUND, "__metadata__": {"made_with": "x"}}, bytes(11)))
    entries = read_header(tmp_path / "w")
    assert [(name, one.dtype, one.shape, one.size_bytes) for name, one in entries.items()] == [
        ("a", "F32", (2,), 8),
        ("b", "I8", (3,), 3),
    ]
    assert read_metadata(tmp_path / "w") == {"made_with": "x"}


def test_a_byte_of_u8_counts_as_two_values(tmp_path):
    header, size = laid_out({"w": ("U8", (3, 16)), "none": ("U8", ()), "b": ("I8", (3, 16))})
    (tmp_path / "w").write_bytes(as_file(header, bytes(size)))
    entries = read_header(tmp_path / "w")
    assert {name: (one.values_shape, one.size_bytes) for name, one in entries.items()} == {
        "w": ((3, 32), 48),
        "none": ((), 1),
        "b": ((3, 16), 48),
    }


@pytest.mark.parametrize("content", [b"", b"\x02", bytes(7)])
def test_less_than_a_length_is_no_file(tmp_path, content):
    refused(tmp_path / "w", content, "is truncated or no safetensors file")


@pytest.mark.parametrize("length", [12, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_the_file_is_not_read(tmp_path, length):
    refused(tmp_path / "w", as_file({}, b"", length), "is truncated or no safetensors file")


def test_a_header_beyond_all_measure_is_not_parsed(tmp_path):
    text = b"{" + b" " * (4 << 20) + b"}"
    refused(tmp_path / "w", as_file(text, b""), "its header is larger than 4 MiB")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"b": {**B, "data_offsets": [4, 7]}}, "'b' begins at byte .*, but what is before it ends at"),
        ({"b": {**B, "data_offsets": [9, 12]}}, "'b' begins at byte .*, but what is before it ends at"),
        ({"a": {**A, "data_offsets": [4, 12]}, "b": ...}, "'a' begins at byte .*, but what is before it ends at"),
        ({"b": {**B, "shape": [4], "data_offsets": [8, 12]}}, "is truncated: .* bytes, but its header tells of"),
        ({"b": {**B, "shape": [2], "data_offsets": [8, 10]}}, "1 bytes follow its last tensor"),
        ({"b": {**B, "data_offsets": [11, 8]}}, "'b' holds -3 bytes"),
        ({"b": {**B, "data_offsets": [-3, 0]}}, "entry 'b' is malformed"),
        ({"b": {**B, "data_offsets": [8]}}, "entry 'b' is malformed"),
        ({"b": {**B, "data_offsets": "ab"}}, "entry 'b' is malformed"),
        ({"b": {**B, "data_offsets": [8.0, 11.0]}}, "entry 'b' is malformed"),
        ({"b": {**B, "shape": [True, 3]}}, "entry 'b' is malformed"),
        ({"b": {**B, "shape": [-3]}}, "entry 'b' is malformed"),
        ({"b": {**B, "shape": "3"}}, "entry 'b' is malformed"),
        ({"b": {**B, "shape": {"3": 3}}}, "entry 'b' is malformed"),
        ({"b": {**B, "shape": [2**32, 2**32]}}, "'b' holds 3 bytes, but I8"),
        ({"b": {**B, "shape": [10**17] * 8}}, "'b' holds 3 bytes, but I8"),
        ({"b": {**B, "shape": [1] * 9}}, "'b' has 9 axes, more than 8"),
        ({"b": {**B, "dtype": "I64"}}, "'b' has dtype I64; use one of F32, F16, I8, U8"),
        ({"b": {**B, "dtype": ["I8"]}}, "entry 'b' is malformed"),
        ({"b": {**B, "more": 1}}, "entry 'b' is malformed"),
        ({"b": []}, "entry 'b' is malformed"),
        ({"b": None}, "entry 'b' is malformed"),
        ({"__metadata__": ["x"]}, "its metadata is not texts by name"),
        ({"__metadata__": {"x": 1}}, "its metadata is not texts by name"),
    ],
)
def test_what_no_writer_writes_is_told(tmp_path, changes, told):
    header = {name: item for name, item in {**SOUND, **changes}.items() if item is not ...}
    refused(tmp_path / "w", as_file(header, bytes(11)), told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "its header is not JSON"),
        (b"[]", "its header is not an object"),
        (b" {}", "its header is not an object"),
        (b'{"a": {}, "a": {}}', "the key 'a' stands there twice"),
        (b'{"\xff": 1}', "it is not UTF-8 at byte 2"),
        (b"\xef\xbb\xbf{}", "it begins with a byte order mark"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is too large a number"),
        (b"[" * 100_000, "its header is not JSON"),
    ],
)
def test_a_header_that_is_no_json_object_is_told(tmp_path, text, told):
    refused(tmp_path / "w", as_file(text, b""), told)


def test_a_directory_is_no_weight_file(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot be read \(Is a directory\)"):
        read_header(tmp_path)


def test_what_is_told_of_a_huge_header_is_short_and_costs_little(tmp_path):
    header = {"a" * 100_000: {**A, "shape": [10**17] * 5000}}
    (tmp_path / "w").write_bytes(as_file(header, bytes(8)))
    tracemalloc.start()
    with pytest.raises(WeightsError) as caught:
        read_header(tmp_path / "w")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert len(str(caught.value)) < 1000


# headers that are almost sound: laid out well, then changed

tensors = st.dictionaries(
    st.text(max_size=3).filter("__metadata__".__ne__),
    st.tuples(st.sampled_from(["F32", "F16", "I8", "U8", "F64"]), st.lists(st.integers(0, 3), max_size=3)),
    max_size=3,
)
numbers = st.integers(-2, 20) | st.sampled_from([True, 2**31, 2**63, 2**64, 10**30, 1.0, None])


@st.composite
def almost_files(draw):
    """Draw the bytes of a file that is sound but for some changes to its header, its length or its bytes."""
    header, size = laid_out(draw(tensors))
    data = draw(st.binary(min_size=size, max_size=size))
    for name in list(header):
        match draw(st.sampled_from(["keep", "keep", "offset", "shape", "dtype", "swap", "key"])):
            case "offset":
                header[name]["data_offsets"][draw(st.integers(0, 1))] = draw(numbers)
            case "shape":
                header[name]["shape"].insert(0, draw(numbers))
            case "dtype":
                header[name]["dtype"] = draw(st.sampled_from(["F32", "I8", "U8", "BF16", "", None, []]))
            case "swap":
                header[draw(st.text(max_size=3))] = header.pop(name)
            case "key":
                header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))] = draw(numbers)
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=2), st.text(max_size=2) | st.none(), max_size=2))
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode() + b" " * draw(st.integers(0, 3))
    content = as_file(text, data)
    match draw(st.sampled_from(["keep", "keep", "cut", "more", "length", "byte"])):
        case "cut":
            content = content[: draw(st.integers(0, len(content)))]
        case "more":
            content += draw(st.binary(min_size=1, max_size=3))
        case "length":
            content = struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, 400))) + content[8:]
        case "byte":
            place = draw(st.integers(0, len(content) - 1))
            content = content[:place] + draw(st.binary(min_size=1, max_size=2)) + content[place + 1 :]
    return content


@settings(max_examples=500)
@given(almost_files() | st.binary(max_size=60))
def test_any_bytes_are_read_inside_the_file_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        entries, texts = read_header(path), read_metadata(path)
    except WeightsError:
        return
    assert all(one.offset > 8 and one.offset + one.size_bytes <= len(content) for one in entries.values())
    with safe_open(path, "numpy") as file:  # what we take, the format's own library takes too
        assert set(file.keys()) == set(entries)
        assert (file.metadata() or {}) == texts
        assert {name: tuple(file.get_slice(name).get_shape()) for name in entries} == {
            name: one.shape for name, one in entries.items()
        }


@settings(max_examples=300)
@given(tensors, st.randoms(use_true_random=False))
def test_any_values_are_read_as_they_are_or_refused(tmp_path_factory, drawn, random):
    path = tmp_path_factory.getbasetemp() / "values.safetensors"
    drawn = {name: (dtype, shape) for name, (dtype, shape) in drawn.items() if dtype in ("F32", "F16")}
    header, size = laid_out(drawn)
    path.write_bytes(as_file(header, random.randbytes(size)))
    entries = read_header(path)
    try:
        read = read_tensors(path, {name: one.shape for name, one in entries.items()})
    except WeightsError:
        with pytest.raises(WeightsError, match="not finite"):
            check_finite(path, entries)
    else:
        check_finite(path, entries)
        assert {name: array.shape for name, array in read.items()} == {name: one.shape for name, one in entries.items()}


@given(st.binary(min_size=1, max_size=200))
def test_the_library_refuses_nothing_that_we_take(tmp_path_factory, flips):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save_file({"w": np.arange(4, dtype=np.float32), "v": np.ones((2, 3), np.float16)}, path)
    content = bytearray(path.read_bytes())
    place = int.from_bytes(flips[:2], "little") % len(content)
    content[place] ^= flips[-1]
    assume(flips[-1])
    path.write_bytes(content)
    try:
        safe_open(path, "numpy").keys()
    except SafetensorError:
        with pytest.raises(WeightsError):
            read_header(path)
