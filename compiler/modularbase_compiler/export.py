"""From `graph` to Relax: every program of an architecture as one function of one module, weights as parameters.

Kernels are requests here; which are made for them, `portable` leaves to the target. This is all that needs torch.
Weights that only linear layers read get the family's packed layout, so a tied embedding is two parameters: by
rows where tokens are looked up, packed where logits are made. RoPE tables are constants of the module (256 KiB).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from modularbase_compiler.converters import converters
from modularbase_compiler.kernels import Family
from modularbase_compiler.limits import dimension_bounds
from modularbase_compiler.nodes import packable_weights, quantised_weights, table_weights
from modularbase_compiler.portable import Graph
from modularbase_compiler.requests import renamed, requests
from modularbase_core.device.metadata import InputMeta, ParameterMeta, ProgramMeta
from modularbase_core.graph.networks import Router
from modularbase_core.graph.programs import FLOAT, Program, programs
from modularbase_core.graph.quantised import QuantisedEmbedding
from modularbase_core.sdk.architecture import Architecture

_WRAPPERS = {"base": "base.", "pack": "pack.", "router": "network."}  # how programs name the network they wrap


def export_graph(architecture: Architecture, family: Family, dtype: str, precision: str = "float32") -> Graph:
    """Export every program of `architecture` for kernels of a family, computed in `dtype`, weights in `precision`."""
    bounds = dimension_bounds(architecture)
    matrices = None if precision == "float32" else "float16"
    exported = {
        program.name: _export(program, architecture.kind, family, dtype, matrices, bounds)
        for program in programs(architecture, precision)
    }
    modules = {name: module for name, (_, module) in exported.items()}
    return Graph(_merge(modules), {name: meta for name, (meta, _) in exported.items()})


def _merge(modules: Mapping[str, Any]) -> Any:
    """Join the programs' modules into one; equal requests become one."""
    builder = relax.BlockBuilder()
    for program, module in modules.items():
        names = {
            name: builder.add_func(function, name.name_hint)
            for name, function in module.functions.items()
            if not isinstance(function, relax.Function)
        }
        main = renamed(module["main"], names)
        builder.add_func(main.with_attr("global_symbol", program), program)
    return builder.get()


def _export(
    program: Program, kind: str, family: Family, dtype: str, matrices: str | None, bounds: dict[str, int]
) -> tuple[ProgramMeta, Any]:
    module = program.module.eval().requires_grad_(False)
    if dtype == "float16":
        module = _half(module)
    examples = _examples(program, dtype, bounds)
    graph = torch.export.export(module, examples, dynamic_shapes=_dynamic(program, bounds))
    parameters = _pack(graph, family, matrices, _WRAPPERS[kind])
    imported = from_exported_program(
        graph,
        keep_params_as_input=True,
        unwrap_unit_return_tuple=True,
        run_ep_decomposition=False,
        custom_convert_map=converters(family, requests()),
    )
    main = imported["main"].without_attr("params")
    inputs = list(main.params[: len(program.inputs)])
    weights = {var.name: var for var in main.params[len(program.inputs) :]}
    used = [weights[name] for name in parameters]
    imported["main"] = relax.Function([*inputs, *used], main.body, main.ret_ty, main.is_pure, main.attrs)
    meta = ProgramMeta(
        tuple(
            InputMeta(item.name, dtype if item.dtype == FLOAT else item.dtype, item.shape, item.updated)
            for item in program.inputs
        ),
        tuple(parameters.values()),
        1 + sum(item.updated for item in program.inputs),
    )
    return meta, imported


def _pack(
    graph: torch.export.ExportedProgram, family: Family, matrices: str | None, wrapper: str
) -> dict[str, ParameterMeta]:
    """Give weights the shape and dtype that kernels take in the graph's state; describe those that are used, by node.

    matrices: dtype of those that linear layers or look-ups alone read, None for the network's own. Scales lie beside
    their quantised values, so they are no parameters of their own.
    """
    packable, tables = packable_weights(graph.graph), table_weights(graph.graph)
    bits, scales = quantised_weights(graph.graph)
    used = {node.name for node in graph.graph.find_nodes(op="placeholder") if node.users}
    parameters = {}
    for node_name, target in graph.graph_signature.inputs_to_parameters.items():
        if node_name not in used or node_name in scales:
            continue
        value = graph.state_dict[target]
        dtype = str(value.dtype).removeprefix("torch.")
        if node_name in bits:
            form = ("uint8", f"{family.groups_layout}{bits[node_name]}")
        elif node_name in packable:
            form = (matrices or dtype, family.linear_layout)
        else:
            form = (matrices or dtype if node_name in tables else dtype, "row")
        parameters[node_name] = meta = ParameterMeta(target.removeprefix(wrapper), form[0], tuple(value.shape), form[1])
        if form != (dtype, "row"):
            # the importer takes a parameter's shape and dtype from here
            graph.state_dict[target] = torch.empty(meta.stored_shape, dtype=getattr(torch, meta.dtype))
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
        if parameter.is_floating_point():
            parameter.data = parameter.data.half()
    for layer in module.modules():
        if isinstance(layer, QuantisedEmbedding):
            layer.dtype = torch.float16
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
