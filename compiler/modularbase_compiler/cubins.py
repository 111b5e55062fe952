"""Proof that a module holds GPU code: the ELF images of its cubins, read from the file itself.

A CUDA build without a working compiler succeeds and embeds source text; only these bytes tell the difference.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from modularbase_core.errors import ArtefactError

_MAGIC: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_MACHINE_CUDA: Final = 190
_HEADER_BYTES: Final = 64
_SHIFTED_ABI: Final = 8  # from this ABI version (CUDA 13) on, e_flags holds the architecture in its second byte


def cubins(path: Path) -> tuple[str, ...]:
    """Return the architectures of the cubins in a file, such as ("sm_86",), in order of their place."""
    data = path.read_bytes()
    found = []
    start = data.find(_MAGIC)
    while start >= 0:
        header = data[start : start + _HEADER_BYTES]
        if len(header) == _HEADER_BYTES and struct.unpack_from("<H", header, 18)[0] == _MACHINE_CUDA:
            flags = struct.unpack_from("<I", header, 48)[0]
            found.append(f"sm_{(flags >> 8 if header[8] >= _SHIFTED_ABI else flags) & 0xFF}")
        start = data.find(_MAGIC, start + 1)
    return tuple(found)


def check_cubins(path: Path, architecture: str) -> None:
    """Raise ArtefactError unless the module at `path` holds GPU code of `architecture`, and of no other."""
    found = set(cubins(path))
    if found != {architecture}:
        raise ArtefactError(
            f"{path.name} should hold GPU code for {architecture} and holds {', '.join(sorted(found)) or 'none'}; "
            "the CUDA compiler did not run: run `pip install 'modularbase[cuda]'`"
        )
