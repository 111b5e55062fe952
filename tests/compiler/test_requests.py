"""Kernels asked for first and made later, for a processor that a graph knows nothing of."""

import json

import pytest
import tvm
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.requests import requests, with_kernels
from tvm import relax, tirx

from modularbase_core.errors import ArtefactError


def module_of(kernel, *, call=relax.call_tir):
    """A program that calls one kernel on rows of 32."""
    builder, rows = relax.BlockBuilder(), tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([rows, 32], "float32"))
    w = relax.Var("w", relax.TensorType([32], "float32"))
    with builder.function("main", [x, w]):
        called = builder.add_func(kernel, "norm") if isinstance(kernel, tirx.PrimFunc) else kernel
        builder.emit_func_output(builder.emit(call(called, [x, w], relax.TensorType([rows, 32], "float32"))))
    return builder.get()


def test_equal_requests_are_one_function_and_others_differ():
    asked = requests()
    one = asked.linear(8, 32, bias=True, residual=False, stored="float32")
    same = asked.linear(k=32, n=8, residual=False, bias=True, stored="float32")
    assert tvm_equal(one, same)
    assert not tvm_equal(one, asked.linear(8, 32, bias=False, residual=False, stored="float32"))
    assert not tvm_equal(asked.rms_norm(32, 1e-6), asked.rms_norm(32, 1e-5))


def tvm_equal(one, other):
    try:
        tvm.ir.assert_structural_equal(one, other)
    except ValueError:
        return False
    return True


def test_a_request_becomes_the_kernel_that_it_names():
    kernels = CpuKernels("x86-64-v3")
    made = with_kernels(module_of(requests().rms_norm(32, 1e-6)), kernels)
    assert tvm_equal(made, module_of(kernels.rms_norm(32, 1e-6).without_attr("global_symbol")))


def asking(**request):
    return tirx.PrimFunc([], tirx.Evaluate(0)).with_attr("modularbase.kernel", json.dumps(request))


@pytest.mark.parametrize(
    "function",
    [
        asking(kernel="rms_norm", width=32),
        asking(kernel="rms_norm", width=32, epsilon=1e-6, more=1),
        asking(kernel="__init__", level="x86-64"),
        asking(width=32),
        tirx.PrimFunc([], tirx.Evaluate(0)),
    ],
)
def test_what_is_no_request_for_a_kernel_is_refused(function):
    with pytest.raises(ArtefactError, match="is no kernel; make the graph again"):
        with_kernels(module_of(function), CpuKernels("x86-64"))


def test_code_from_outside_a_graph_is_never_called():
    def call(function, values, result):
        return relax.call_dps_packed(function, values, result)

    with pytest.raises(ArtefactError, match="is no operator of a network"):
        with_kernels(module_of("libc_system", call=call), CpuKernels("x86-64"))
