"""RMSNorm (Zhang and Sennrich, 2019): y = x / sqrt(mean(x^2) + epsilon) * w, row by row, float32."""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.vector import fold

_SERIAL_ROWS = 16  # below this, starting threads costs more than the rows


def rms_norm(width: int, epsilon: float) -> Any:
    """Make the kernel: x [T, E], w [E] -> y [T, E]; E is a multiple of 16."""

    def add(a: Any, b: Any) -> Any:
        return a + b

    @T.prim_func(s_tir=True)
    def rms_norm(x_: T.handle, w_: T.handle, y_: T.handle) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, width), "float32")
        w = T.match_buffer(w_, (width,), "float32")
        y = T.match_buffer(y_, (rows, width), "float32")

        @T.inline
        def norm(total, scale, row):
            total[T.ramp(0, 1, 16)] = T.broadcast(T.float32(0), 16)
            for i in T.serial(width // 16):
                total[T.ramp(0, 1, 16)] = (
                    total[T.ramp(0, 1, 16)] + x[row, T.ramp(i * 16, 1, 16)] * x[row, T.ramp(i * 16, 1, 16)]
                )
            scale[0] = T.float32(1) / T.sqrt(fold(total, add) / T.float32(width) + T.float32(epsilon))
            for i in T.serial(width // 16):
                y[row, T.ramp(i * 16, 1, 16)] = (
                    x[row, T.ramp(i * 16, 1, 16)] * T.broadcast(scale[0], 16) * w[T.ramp(i * 16, 1, 16)]
                )

        if rows < _SERIAL_ROWS:
            for row in T.serial(rows):
                with T.sblock("few"):
                    total = T.sblock_alloc_buffer((16,), "float32")
                    scale = T.sblock_alloc_buffer((1,), "float32")
                    norm(total, scale, row)
        else:
            for row in T.parallel(rows):
                with T.sblock("many"):
                    total = T.sblock_alloc_buffer((16,), "float32")
                    scale = T.sblock_alloc_buffer((1,), "float32")
                    norm(total, scale, row)

    return rms_norm
