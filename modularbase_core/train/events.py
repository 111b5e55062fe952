"""Event files as TensorBoard reads them: records of TensorFlow's, each a message of event.proto.

Scalars are all that training tells, and of those the two formats are short; written here, so that a run has its
curves whatever is installed, and a disk that is full is an OSError where it is met, not in a thread of a writer's.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_DOUBLE, _VARINT, _BYTES, _FLOAT = 1, 0, 2, 5
"""Wire types of Protocol Buffers; a field's key is its number * 8 + one of them. (A double's is 1, a float's 5.)"""
_START: Final = 1
"""SessionLog.START: what has steps from here on was written by a session that is lost."""


class EventFile:
    """One file of events in `folder`, for `tensorboard --logdir`; `step` is where the run goes on from.

    Every event is in the file when `write` returns. Raises OSError as the file system gives it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # the first sorts by time; the others tell apart what one second began
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{step}"
        self._file = (folder / name).open("wb", buffering=0)
        self._append(_bytes(3, b"brain.Event:2"))
        if step:
            self._append(_whole(2, step + 1) + _bytes(7, _whole(1, _START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` as those of `step`."""
        told = (_bytes(1, name.encode()) + _key(2, _FLOAT) + struct.pack("<f", one) for name, one in values.items())
        self._append(_whole(2, step) + _bytes(5, b"".join(_bytes(1, one) for one in told)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, fields: bytes) -> None:
        event = _key(1, _DOUBLE) + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checked(length) + event + _checked(event))


def _key(field: int, wire: int) -> bytes:
    return bytes((field << 3 | wire,))


def _whole(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _crc_table() -> tuple[int, ...]:
    """Return CRC-32C (Castagnoli, reflected) of each byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE: Final = _crc_table()


def _checked(content: bytes) -> bytes:
    """Return the record format's checksum of `content`: CRC-32C, rotated and moved so that no record looks like one."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
