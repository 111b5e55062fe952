"""SwiGLU and GeGLU (Shazeer, 2020): y = silu(gate) * up or gelu(gate) * up, both read from one un-split projection.

And gelu alone (Hendrycks and Gimpel, 2016), where there is no gate.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.activation import GATED
from modularbase_compiler.kernels.cpu.vector import activated

_SERIAL_ROWS = 8


def activation(width: int, form: str) -> Any:
    """Make the kernel: x [T, 2F] (gate, then up), or [T, F] without a gate -> y [T, F]; F is a multiple of 16."""
    gated = form in GATED
    read = 2 * width if gated else width

    @T.prim_func(s_tir=True)
    def activation(x_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, read), "float32")
        y = T.match_buffer(y_, (rows, width), "float32")

        @T.inline
        def activate(row):
            for i in T.serial(width // 16):
                if gated:
                    y[row, T.ramp(i * 16, 1, 16)] = (
                        activated(x[row, T.ramp(i * 16, 1, 16)], form) * x[row, T.ramp(width + i * 16, 1, 16)]
                    )
                else:
                    y[row, T.ramp(i * 16, 1, 16)] = activated(x[row, T.ramp(i * 16, 1, 16)], form)

        if rows < _SERIAL_ROWS:
            for row in T.serial(rows):
                with T.sblock("few"):
                    activate(row)
        else:
            for row in T.parallel(rows):
                with T.sblock("many"):
                    activate(row)

    return activation
