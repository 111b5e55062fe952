"""A portable graph: an architecture's programs in Relax, with requests in place of kernels, and what callers know.

It depends on no processor, and to read one takes no torch. Decides the form of its file, in which RoPE's tables are
left out: they would be nearly all of it. Which file fits a build, `device.graphs` decides.
"""

from __future__ import annotations

import json
import lzma
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import tvm

from modularbase_core.device.metadata import ProgramMeta, program_from_dict
from modularbase_core.errors import ArtefactError
from modularbase_core.graph.rotary import rotary_table
from modularbase_core.sdk.architecture import Architecture, RouterArchitecture

_LIMIT_BYTES: Final = 256 << 20  # unpacked; a base of 4 layers has 2 MB
_TENSOR: Final = "ffi.Tensor"
_TABLE: Final = "rotary"  # the mark of a tensor that lacks its values


@dataclass(frozen=True, slots=True)
class Graph:
    """A module whose kernels are requests (see `requests`), and its functions by name; workspaces are yet unknown."""

    module: Any  # tvm.IRModule
    programs: Mapping[str, ProgramMeta]

    def to_bytes(self, architecture: Architecture) -> bytes:
        """Write as a file's content."""
        programs = {name: asdict(program) for name, program in self.programs.items()}
        module = json.loads(tvm.ir.save_json(self.module))
        table = _table(architecture)
        for node in module["nodes"]:
            if node["type"] == _TENSOR and table and (data := b64decode(node["data"])).endswith(table):
                node.update({"data": b64encode(data[: -len(table)]).decode(), _TABLE: True})
        text = json.dumps({"programs": programs, "module": module}, separators=(",", ":"))
        return lzma.compress(text.encode(), preset=9)


def read_graph(path: Path, architecture: Architecture) -> Graph:
    """Read what `Graph.to_bytes` wrote; raises ArtefactError when it cannot be."""
    try:
        unpacker = lzma.LZMADecompressor(memlimit=_LIMIT_BYTES)
        text = unpacker.decompress(path.read_bytes(), _LIMIT_BYTES)
        if not unpacker.eof:
            raise ValueError("it is cut short, or too large")
        value = json.loads(text)
        programs = {name: program_from_dict(item) for name, item in value["programs"].items()}
        table = _table(architecture)
        for node in value["module"]["nodes"]:
            if node.pop(_TABLE, False):
                node["data"] = b64encode(b64decode(node["data"]) + table).decode()
        module = tvm.ir.load_json(json.dumps(value["module"]))
        if not isinstance(module, tvm.IRModule):
            raise ValueError("it holds no module")
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtefactError(f"the graph {path} cannot be read ({reason}); install its pack again") from None
    return Graph(module, programs)


def _table(architecture: Architecture) -> bytes:
    if isinstance(architecture, RouterArchitecture):
        return b""
    blocks, positions = architecture.blocks, architecture.window.trained_tokens
    return rotary_table(positions, blocks.head_size, blocks.rope_theta).tobytes()
