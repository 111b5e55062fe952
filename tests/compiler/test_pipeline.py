"""What is left for the VM to do beside kernels: nothing that grows with the layers."""

from collections import Counter
from dataclasses import replace

import pytest
from modularbase_compiler.export import export_graph
from modularbase_compiler.kernels import family_of
from modularbase_compiler.kernels.cpu import CpuKernels
from modularbase_compiler.pipeline import lower
from modularbase_compiler.requests import with_kernels
from modularbase_compiler.target import host_target
from tvm import relax

from modularbase_core.device.target import cpu_target
from tests.compiler.conftest import TINY


def calls_of(layers: int, precision: str) -> Counter[str]:
    """Count the calls of a pack's program by what they call; kernels count as one."""
    target, pack = cpu_target(), replace(TINY["gelu"], layers=layers)
    kernels = CpuKernels(target.level, target.features)
    graph = export_graph(pack, family_of("cpu", "float32"), "float32", precision)
    lowered = lower(with_kernels(graph.module, kernels), host_target(target))
    found: Counter[str] = Counter()

    def visit(node: object) -> None:
        if isinstance(node, relax.Call):
            found[getattr(node.op, "name", "kernel")] += 1

    relax.analysis.post_order_visit(lowered["run"], visit)
    return found


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_more_layers_are_more_kernels_and_no_more_allocations(precision):
    few, many = calls_of(2, precision), calls_of(5, precision)
    assert many["kernel"] > few["kernel"]
    for name in ("relax.vm.alloc_storage", "relax.vm.alloc_tensor"):
        assert few[name] == many[name] > 0
    assert set(few) == set(many)


def test_a_router_computes_in_float32_from_weights_held_in_float16():
    graph = export_graph(TINY["router"], family_of("cuda", "float16"), "float16", "float16")
    assert "float16" in {item.dtype for item in graph.programs["route"].parameters}
