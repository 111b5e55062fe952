"""Bytes that are not what their name says: the place and the likely encoding are told."""

import gzip
import lzma
import os

import pytest

from modularbase_core.errors import DataError
from modularbase_core.train.readers.opening import open_text

CHINESE = "港口的早晨很明亮。船只归来，海鸥在平静的水面上鸣叫。\n" * 3
WRONG = [
    (b"one\ntwo\ncaf\xe9 au lait\n", r":3 is not UTF-8 at byte 11 \(it looks like Latin-1 or Windows-1252\)"),
    (CHINESE.encode("gb18030"), r":1 is not UTF-8 at byte 0 \(it looks like GB18030 or GBK\)"),
    ("plain\n".encode("utf-16"), r":1 is not UTF-8 at byte 0 \(it is UTF-16\)"),
    ("plain\n".encode("utf-32"), r":1 is not UTF-8 at byte 0 \(it is UTF-32\)"),
    (b"\x7fELF\x02\x01\x01\0\0\xff\xfe\n", r":1 is not UTF-8 at byte 9 \(it looks binary\)"),
    (b"a\n" * 9000 + "é".encode()[:1], "ends in the middle of a UTF-8 character, at byte 18001"),
    (b"a\n" * 4096 + b"\xff\n", r":4097 is not UTF-8 at byte 8192 "),
    ("字".encode() * 2731 + b"\xff\n", r":1 is not UTF-8 at byte 8193 "),
]


def read(path):
    with open_text(path) as file:
        return file.read()


@pytest.mark.parametrize(("content", "told"), WRONG, ids=[told[:40] for _, told in WRONG])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_bytes_of_another_encoding_are_told_with_line_and_byte(tmp_path, content, told, pack):
    path = tmp_path / ("a.txt" + {bytes: "", gzip.compress: ".gz", lzma.compress: ".xz"}[pack])
    path.write_bytes(pack(content))
    with pytest.raises(DataError, match=told):
        read(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    path = tmp_path / name
    content = b"\xef\xbb\xbfone\r\ntwo"
    path.write_bytes({"z": lzma.compress if name.endswith("xz") else gzip.compress}.get(name[-1], bytes)(content))
    assert read(path) == "one\ntwo"


@pytest.mark.parametrize(("name", "pack"), [("a.gz", gzip.compress), ("a.xz", lzma.compress)])
def test_a_packed_file_that_is_cut_short_or_of_another_kind_is_one_sentence(tmp_path, name, pack):
    path = tmp_path / name
    content = pack(os.urandom(100_000).hex().encode())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError, match=rf"{name} is damaged or no \.(gz|xz) file \(it ends too early\); fetch or pack"
    ):
        read(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match=rf"{name} is damaged or no "):
        read(path)


def test_what_is_no_file_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt does not exist; check the data folder"):
        read(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read(tmp_path)


def test_reading_tells_how_many_bytes_of_the_file_it_took(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"word " * 100_000))
    taken = []
    with open_text(path, taken.append) as file:
        while file.read(1000):
            pass
    assert sum(taken) == path.stat().st_size
