"""SwiGLU's product (Shazeer, 2020): y = silu(gate) * up, both read from one un-split projection."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.vector import silu

_SERIAL_ROWS = 8


def swiglu(width: int) -> Any:
    """Make the kernel: x [T, 2F] (gate, then up) -> y [T, F]; F is a multiple of 16."""

    @T.prim_func(s_tir=True)
    def swiglu(x_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, 2 * width), "float32")
        y = T.match_buffer(y_, (rows, width), "float32")

        @T.inline
        def gate(row):
            for i in T.serial(width // 16):
                y[row, T.ramp(i * 16, 1, 16)] = (
                    silu(x[row, T.ramp(i * 16, 1, 16)]) * x[row, T.ramp(width + i * 16, 1, 16)]
                )

        if rows < _SERIAL_ROWS:
            for row in T.serial(rows):
                with T.sblock("few"):
                    gate(row)
        else:
            for row in T.parallel(rows):
                with T.sblock("many"):
                    gate(row)

    return swiglu
