"""From `graph` to Relax: every program of an architecture as one function of one module, weights as parameters.

Weights that only linear layers read get the target's packed layout, so a tied embedding is two parameters: by
rows where tokens are looked up, packed where logits are made. RoPE tables are constants of the module (256 KiB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from modularbase_compiler.converters import converters, packable_weights
from modularbase_compiler.kernels import Kernels
from modularbase_compiler.limits import dimension_bounds
from modularbase_core.device.metadata import InputMeta, ParameterMeta
from modularbase_core.graph.networks import Router
from modularbase_core.graph.programs import FLOAT, Program, programs
from modularbase_core.sdk.architecture import Architecture

_WRAPPERS = {"base": "base.", "pack": "pack.", "router": "network."}  # how programs name the network they wrap


@dataclass(frozen=True, slots=True)
class Exported:
    """One program as a Relax function `name` of `module`, with what its caller must know."""

    name: str
    module: Any  # tvm.IRModule
    inputs: tuple[InputMeta, ...]
    parameters: tuple[ParameterMeta, ...]
    results: int


def export_programs(architecture: Architecture, kernels: Kernels, dtype: str) -> list[Exported]:
    """Export every program of `architecture` for a target's kernels, in float32 or float16."""
    bounds = dimension_bounds(architecture)
    return [_export(program, architecture.kind, kernels, dtype, bounds) for program in programs(architecture)]


def merge(exported: list[Exported]) -> Any:
    """Join the programs' modules into one; equal kernels become one."""
    builder = relax.BlockBuilder()
    for program in exported:
        names = {
            name: builder.add_func(function, name.name_hint)
            for name, function in program.module.functions.items()
            if not isinstance(function, relax.Function)
        }
        main = _Renamer(names).visit_expr(program.module["main"])
        builder.add_func(main.with_attr("global_symbol", program.name), program.name)
    return builder.get()


def _export(program: Program, kind: str, kernels: Kernels, dtype: str, bounds: dict[str, int]) -> Exported:
    module = program.module.eval().requires_grad_(False)
    if dtype == "float16":
        module = _half(module)
    examples = _examples(program, dtype, bounds)
    graph = torch.export.export(module, examples, dynamic_shapes=_dynamic(program, bounds))
    parameters = _pack(graph, kernels.linear_layout, _WRAPPERS[kind])
    imported = from_exported_program(
        graph,
        keep_params_as_input=True,
        unwrap_unit_return_tuple=True,
        run_ep_decomposition=False,
        custom_convert_map=converters(kernels),
    )
    main = imported["main"].without_attr("params")
    inputs = list(main.params[: len(program.inputs)])
    weights = {var.name: var for var in main.params[len(program.inputs) :]}
    used = [weights[name] for name in parameters]
    imported["main"] = relax.Function([*inputs, *used], main.body, main.ret_ty, main.is_pure, main.attrs)
    return Exported(
        program.name,
        imported,
        tuple(
            InputMeta(item.name, dtype if item.dtype == FLOAT else item.dtype, item.shape, item.updated)
            for item in program.inputs
        ),
        tuple(parameters.values()),
        1 + sum(item.updated for item in program.inputs),
    )


def _pack(graph: torch.export.ExportedProgram, layout: str, wrapper: str) -> dict[str, ParameterMeta]:
    """Give linear weights their packed shape in the graph's state; describe the parameters that are used, by node."""
    packable = packable_weights(graph.graph)
    used = {node.name for node in graph.graph.find_nodes(op="placeholder") if node.users}
    parameters = {}
    for node_name, target in graph.graph_signature.inputs_to_parameters.items():
        if node_name not in used:
            continue
        value = graph.state_dict[target]
        parameters[node_name] = meta = ParameterMeta(
            target.removeprefix(wrapper),
            str(value.dtype).removeprefix("torch."),
            tuple(value.shape),
            layout if node_name in packable else "row",
        )
        if meta.layout != "row":
            # the importer takes a parameter's shape from here
            graph.state_dict[target] = torch.empty(meta.stored_shape, dtype=value.dtype)
    return parameters


def _examples(program: Program, dtype: str, bounds: dict[str, int]) -> tuple[torch.Tensor, ...]:
    """Make inputs to trace with: of odd sizes, lest `torch.export` takes a symbol for a constant."""
    odd = {"T": 37, "B": 3, "R": 5, "M": 7, "P": 11}
    sizes = {letter: min(size, bounds.get(letter, size)) for letter, size in odd.items()}
    kinds = {FLOAT: getattr(torch, dtype), "int32": torch.int32}
    return tuple(
        torch.zeros([sizes[size] if isinstance(size, str) else size for size in item.shape], dtype=kinds[item.dtype])
        for item in program.inputs
    )


def _dynamic(program: Program, bounds: dict[str, int]) -> tuple[dict[int, Any], ...]:
    dims = {letter: torch.export.Dim(letter, min=1, max=bound) for letter, bound in bounds.items()}
    return tuple(
        {axis: dims[size] for axis, size in enumerate(item.shape) if isinstance(size, str)} for item in program.inputs
    )


def _half(module: torch.nn.Module) -> torch.nn.Module:
    """Make the weights float16; RoPE tables stay float32, and so does a router, whose sums exceed float16."""
    if isinstance(module, Router):
        return _Upcast(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.half()
    return module


class _Upcast(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, hidden: torch.Tensor, tokens: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        query: torch.Tensor = self.network(hidden.float(), tokens, starts, lengths)
        return query


@relax.expr_functor.mutator
class _Renamer(relax.PyExprMutator):  # type: ignore[misc]  # TVM ships no types
    def __init__(self, names: dict[Any, Any]) -> None:
        super().__init__()
        self._names = names

    def visit_global_var_(self, op: Any) -> Any:
        return self._names.get(op, op)
