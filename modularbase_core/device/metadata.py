"""What an artefact says of itself in meta.json: programs, their inputs and parameters, target, limits, bytes.

The compiler writes it and `device` reads it; this file is all that the two share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from modularbase_core.device.target import Target
from modularbase_core.errors import ArtefactError, ModularBaseError
from modularbase_core.sdk.architecture import Architecture, architecture_from_dict, architecture_to_dict
from modularbase_core.sdk.parameters import QUANTISATION_GROUP

SCHEMA: Final = 1
META_FILE: Final = "meta.json"
QUANTISED_LAYOUTS: Final = {"n32q8": 8, "n32q4": 4, "t32q8": 8, "t32q4": 4}
"""Layouts of quantised matrices and the bits of a value there."""


def zero_point(bits: int) -> int:
    """Return what is added to a quantised value, so that it is an unsigned one."""
    return 1 << (bits - 1)


def group_bytes(bits: int) -> int:
    """Return the bytes of a group of 32 columns in 32 rows: the values, then 32 scales of float16."""
    return 32 * QUANTISATION_GROUP * bits // 8 + 32 * 2


@dataclass(frozen=True, slots=True)
class InputMeta:
    """One input of a program. A letter in `shape` is symbolic; `updated` inputs come back as results, in place."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    updated: bool


@dataclass(frozen=True, slots=True)
class ParameterMeta:
    """One weight of a program. `name` is its key in the weight file, `shape` its shape there.

    layout: "row" as in the file; "n32k": [N, K] as [ceil(N/32), K, 32], row n at block n//32, lane n%32; "n32q8",
    "n32q4": quantised, [ceil(N/32), K/32, bytes] of uint8, see `device.layouts`; "t32q8", "t32q4": the same bytes in
    the order of tensor cores; matrices of experts one after the other.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the tensor that the program takes."""
        if self.layout == "row":
            return self.shape
        *outer, rows, columns = self.shape
        blocks = prod(outer) * -(-rows // 32)
        if self.layout == "n32k":
            return (blocks, columns, 32)
        return (blocks, columns // QUANTISATION_GROUP, group_bytes(QUANTISED_LAYOUTS[self.layout]))


@dataclass(frozen=True, slots=True)
class ProgramMeta:
    """One function of the module: called with inputs, then parameters, in these orders.

    The first of `results` is computed, the others are the updated inputs. workspace_bytes: what a call allocates, 0
    before that is known.
    """

    inputs: tuple[InputMeta, ...]
    parameters: tuple[ParameterMeta, ...]
    results: int
    workspace_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactMeta:
    """An artefact's description. `workspace_bytes` is what all its programs together keep allocated.

    precision: see `config.PRECISIONS`. modules: GPU architecture (or "cpu") -> file, with its digest in `sha256`.
    limits: largest T, B, R, M of a call.
    """

    key: str
    architecture: Architecture
    target: Target
    dtype: str
    precision: str
    tvm: str
    page_tokens: int
    limits: Mapping[str, int]
    workspace_bytes: int
    modules: Mapping[str, str]
    sha256: Mapping[str, str]
    programs: Mapping[str, ProgramMeta]

    def to_json(self) -> str:
        """Write as JSON text."""
        value = {
            "schema": SCHEMA,
            "key": self.key,
            "kind": self.architecture.kind,
            "architecture": architecture_to_dict(self.architecture),
            "target": self.target.to_dict(),
            "dtype": self.dtype,
            "precision": self.precision,
            "tvm": self.tvm,
            "page_tokens": self.page_tokens,
            "limits": dict(self.limits),
            "workspace_bytes": self.workspace_bytes,
            "modules": dict(self.modules),
            "sha256": dict(self.sha256),
            "programs": {name: asdict(program) for name, program in self.programs.items()},
        }
        return json.dumps(value, indent=1)


def read_meta(directory: Path) -> ArtefactMeta:
    """Read an artefact's meta.json; raises ArtefactError when it is missing or unreadable."""
    path = directory / META_FILE
    try:
        value = json.loads(path.read_text())
        if value["schema"] != SCHEMA:
            raise ArtefactError(f"{path} has schema {value['schema']}, expected {SCHEMA}; build the artefact again")
        return ArtefactMeta(
            key=value["key"],
            architecture=architecture_from_dict(value["architecture"]),
            target=Target.from_dict(value["target"]),
            dtype=value["dtype"],
            precision=value["precision"],
            tvm=value["tvm"],
            page_tokens=value["page_tokens"],
            limits=value["limits"],
            workspace_bytes=value["workspace_bytes"],
            modules=value["modules"],
            sha256=value["sha256"],
            programs={name: program_from_dict(item) for name, item in value["programs"].items()},
        )
    except ArtefactError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModularBaseError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}); build the artefact again") from None


# Any: plain JSON values
def program_from_dict(value: Mapping[str, Any]) -> ProgramMeta:
    """Read a program's description from its fields; raises KeyError or TypeError where one is missing or wrong."""
    inputs = tuple(InputMeta(i["name"], i["dtype"], tuple(i["shape"]), i["updated"]) for i in value["inputs"])
    parameters = tuple(
        ParameterMeta(p["name"], p["dtype"], tuple(p["shape"]), p["layout"]) for p in value["parameters"]
    )
    return ProgramMeta(inputs, parameters, value["results"], value["workspace_bytes"])
