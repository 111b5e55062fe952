"""y = x @ W^T (+ bias) (+ residual), x and W quantised by groups of 32: see `graph.quantised.linear_groups`.

A group's products are summed exactly in int32, the groups in order in float32, whatever the number of rows and the
instructions that make them: a row's bits depend neither on its company nor on whether it was prefilled or decoded.
"""

# TVMScript is typed by TVM's parser, not by Python's
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  # TVMScript's own name

from modularbase_compiler.kernels.cpu.dot import Products
from modularbase_compiler.kernels.cpu.vector import prefetch
from modularbase_core.device.metadata import group_bytes
from modularbase_core.sdk.parameters import QUANTISATION_GROUP as GROUP


def linear_groups(
    n: int,
    k: int,
    bits: int,
    *,
    bias: bool = False,
    residual: bool = False,
    experts: int = 0,
    shared: int = 1,
    products: Products,
    ahead_bytes: int = 0,
) -> Any:
    """Make the kernel: q [T, K] int8, scale [T, G], zero [T, G] int32, w [ceil(N/32), G, bytes] uint8, ... -> y [T, N].

    zero: minus the zero point times the sum of a group of q, see `quantise`. w: layout "n32q8" or "n32q4". Its blocks
    are read in order; what lies `ahead_bytes` ahead is prefetched (see `CpuKernels`), 0 for none.

    experts: so many matrices, one after the other in w, each for its own rows. Then order [P] int32 and first [X+1]
    int32 come last before y [P, N]: expert e makes the rows order[first[e]] .. order[first[e+1]] of y, row p of them
    from row p // shared of q. Matrices of experts without rows are not read.
    """
    blocks, groups, size = -(-n // 32), k // GROUP, group_bytes(bits)
    matrices, mixed = max(experts, 1), experts > 0
    lanes, height = products.lanes, products.rows
    parts = 32 // lanes // 2  # of a block's columns: two vectors at once
    steps = GROUP * bits // 32  # vectors of a group for each half of the rows
    whole = n % 32 == 0
    add = products.narrow if bits == 4 and products.narrow else products.dot
    narrow = add is products.narrow
    from_nothing = narrow or (products.signed and bits == 8)  # else a group's sum starts at `zero`

    def weights(vector: Any, half: Any) -> Any:
        """Take the bytes of 4 lanes apart: int8 as they are, of int4 the low or the high halves."""
        if bits == 8:
            if products.signed:
                vector = tirx.bitwise_xor(vector, _int(0x80808080 - (1 << 32), lanes))
        else:
            vector = tirx.bitwise_and(tirx.shift_right(vector, _int(half * 4, lanes)), _int(0x0F0F0F0F, lanes))
        return tirx.reinterpret(f"uint8x{4 * lanes}", vector)

    def read(order: Any, row: Any) -> Any:
        return tirx.floordiv(tirx.Cast("int64", order[row]), shared) if mixed else row

    def written(order: Any, row: Any) -> Any:
        return order[row] if mixed else row

    def dot(sums: Any, vector: Any, half: Any, activation: Any) -> Any:
        spread = tirx.reinterpret(f"int8x{4 * lanes}", tirx.Broadcast(activation, lanes))
        return add(sums, weights(vector, half), spread)

    def summed(sums: Any, zero: Any) -> Any:
        return products.widen(sums) + _int(zero, lanes) if narrow else sums

    @T.prim_func(s_tir=True)
    def linear_groups(
        q_: T.handle,
        s_: T.handle,
        z_: T.handle,
        w_: T.handle,
        b_: T.handle,
        r_: T.handle,
        o_: T.handle,
        f_: T.handle,
        y_: T.handle,
    ) -> None:
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "op_pattern": 8})
        rows, made = T.int64(), T.int64()
        q = T.match_buffer(q_, (rows, k), "int8")
        scale = T.match_buffer(s_, (rows, groups), "float32")
        zero = T.match_buffer(z_, (rows, groups), "int32")
        w = T.match_buffer(w_, (matrices * blocks, groups, size), "uint8")
        b = T.match_buffer(b_, (n,), "float32")
        r = T.match_buffer(r_, (rows, n), "float32")
        order = T.match_buffer(o_, (made,), "int32")
        first = T.match_buffer(f_, (matrices + 1,), "int32")
        y = T.match_buffer(y_, (made if mixed else rows, n), "float32")

        @T.inline
        def finish(acc, edge, row, column, i):
            # the order of additions is fixed: products, then bias, then residual
            if whole:
                if bias:
                    acc[T.ramp(i * lanes, 1, lanes)] = acc[T.ramp(i * lanes, 1, lanes)] + b[T.ramp(column, 1, lanes)]
                if residual:
                    acc[T.ramp(i * lanes, 1, lanes)] = (
                        acc[T.ramp(i * lanes, 1, lanes)] + r[row, T.ramp(column, 1, lanes)]
                    )
                y[row, T.ramp(column, 1, lanes)] = acc[T.ramp(i * lanes, 1, lanes)]
            else:
                # `edge` is a buffer apart, so that indexing it by a variable does not push `acc` out of registers
                edge[T.ramp(0, 1, lanes)] = acc[T.ramp(i * lanes, 1, lanes)]
                for lane in T.serial(lanes):
                    if column + lane < n:
                        if bias:
                            edge[lane] = edge[lane] + b[column + lane]
                        if residual:
                            edge[lane] = edge[lane] + r[row, column + lane]
                        y[row, column + lane] = edge[lane]

        @T.inline
        def multiply(acc, sums, edge, row, block, part, tall, fresh):
            for i in T.unroll(tall * 2):
                acc[T.ramp(i * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
            for g in T.serial(groups):
                if ahead_bytes > 0 and fresh:
                    for line in T.unroll(size // 64):
                        T.evaluate(prefetch(w[block, g, ahead_bytes + line * 64]))
                for i in T.unroll(tall * 2):
                    if from_nothing:
                        sums[T.ramp(i * lanes, 1, lanes)] = T.broadcast(0, lanes)
                    else:
                        sums[T.ramp(i * lanes, 1, lanes)] = T.broadcast(zero[read(order, row + i // 2), g], lanes)
                for j in T.unroll(steps):
                    for half in T.unroll(8 // bits):
                        for i in T.unroll(tall * 2):
                            sums[T.ramp(i * lanes, 1, lanes)] = dot(
                                sums[T.ramp(i * lanes, 1, lanes)],
                                T.reinterpret(
                                    w[
                                        block,
                                        g,
                                        T.ramp(j * 128 + (part * 2 + i % 2) * 4 * lanes, 1, 4 * lanes),
                                    ],
                                    dtype=f"int32x{lanes}",
                                ),
                                half,
                                T.reinterpret(
                                    q[
                                        read(order, row + i // 2),
                                        T.ramp(g * GROUP + half * (GROUP // 2) + j * 4, 1, 4),
                                    ],
                                    dtype="int32",
                                ),
                            )
                for i in T.unroll(tall * 2):
                    acc[T.ramp(i * lanes, 1, lanes)] = acc[T.ramp(i * lanes, 1, lanes)] + T.cast(
                        summed(sums[T.ramp(i * lanes, 1, lanes)], zero[read(order, row + i // 2), g]),
                        f"float32x{lanes}",
                    ) * (
                        T.cast(
                            T.reinterpret(
                                w[block, g, T.ramp(size - 64 + (part * 2 + i % 2) * 2 * lanes, 1, 2 * lanes)],
                                dtype=f"float16x{lanes}",
                            ),
                            f"float32x{lanes}",
                        )
                        * T.broadcast(scale[read(order, row + i // 2), g], lanes)
                    )
            for i in T.unroll(tall * 2):
                finish(acc, edge, written(order, row + i // 2), block % blocks * 32 + (part * 2 + i % 2) * lanes, i)

        for block in T.parallel(matrices * blocks):
            with T.sblock("block"):
                # inferred regions would name the locals below, and equal kernels would no longer compare equal
                T.reads()
                T.writes()
                acc = T.sblock_alloc_buffer((height * 2 * lanes,), "float32")
                sums = T.sblock_alloc_buffer((height * 2 * lanes,), "int32")
                edge = T.sblock_alloc_buffer((lanes,), "float32")
                span = T.sblock_alloc_buffer((2,), "int64")  # the first row and how many
                if mixed:
                    span[0] = T.cast(first[block // blocks], "int64")
                    span[1] = T.cast(first[block // blocks + 1], "int64") - span[0]
                else:
                    span[0] = T.int64(0)
                    span[1] = rows
                for part in T.serial(parts):
                    for t in T.serial(span[1] // height):
                        multiply(acc, sums, edge, span[0] + t * height, block, part, height, t + part == 0)
                    if height > 2:
                        for t in T.serial(span[1] % height // 2):
                            multiply(
                                acc,
                                sums,
                                edge,
                                span[0] + span[1] // height * height + t * 2,
                                block,
                                part,
                                2,
                                span[1] + part < height,
                            )
                    if height > 1:
                        for _ in T.serial(span[1] % 2):
                            multiply(acc, sums, edge, span[0] + span[1] - 1, block, part, 1, span[1] + part == 1)

    # the body never reads what is absent, so its parameter can go
    kept = (True, True, True, True, bias, residual, mixed, mixed, True)
    parameters = [item for item, keep in zip(linear_groups.params, kept, strict=True) if keep]
    return tirx.PrimFunc(parameters, linear_groups.body, linear_groups.ret_type, linear_groups.attrs)


def _int(value: Any, lanes: int) -> Any:
    return tirx.Broadcast(tirx.const(value, "int32") if isinstance(value, int) else value, lanes)
