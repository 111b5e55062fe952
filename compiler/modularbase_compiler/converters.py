"""From torch operations to kernels: the importer's converters for what Relax would lower slowly or not at all.

Each reads one node of the exported graph and emits a call of a PrimFunc. A product or sum that swallows its
operand (a gate, a residual) leaves the swallowed call without users; dead code elimination removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, tirx

from modularbase_compiler.kernels import Kernels
from modularbase_core.sdk.architecture import PAGE_TOKENS

# fx nodes, importers and Relax expressions: neither torch.fx nor TVM types their attributes usefully
Node = Any
Importer = Any
Expression = Any
Converter = Callable[[Node, Importer], Expression]


def converters(kernels: Kernels) -> dict[str, Converter]:
    """Return the importer's custom conversions for a target's kernels."""
    built = _Converters(kernels)
    return {
        "append_kv.default": built.append_kv,
        "append_hidden.default": built.append_hidden,
        "attend.default": built.attend,
        "moe.default": built.moe,
        "linear.default": built.linear,
        "rms_norm.default": built.rms_norm,
        "mul.Tensor": built.multiply,
        "gelu.default": built.gelu,
        "add.Tensor": built.add,
    }


def packable_weights(graph: Any) -> set[str]:
    """Name the placeholders that linear layers alone read, as weights: those may have the kernel's own layout."""
    return {
        node.name
        for node in graph.find_nodes(op="placeholder")
        if node.users and all(_has_kernel(user) and user.args[1] is node for user in node.users)
    }


class _Converters:
    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def append_kv(self, node: Node, importer: Importer) -> Expression:
        pages, _, _, layer, heads = node.args
        _, layers, _, kv_heads, page_size = _shape(pages)
        kernel = self._kernels.append_kv(layers, heads, kv_heads, page_size // PAGE_TOKENS)
        values = [*_values(importer, node.args[:3]), _int64(layer)]
        return _call_inplace(importer, "append_kv", kernel, values)

    def append_hidden(self, node: Node, importer: Importer) -> Expression:
        kernel = self._kernels.append_hidden(_shape(node.args[0])[-1])
        return _call_inplace(importer, "append_hidden", kernel, _values(importer, node.args))

    def attend(self, node: Node, importer: Importer) -> Expression:
        pages, rotary = node.args[1:3]
        layer, heads = node.args[7:]
        _, layers, _, kv_heads, page_size = _shape(pages)
        kernel = self._kernels.attend(
            layers, heads, kv_heads, page_size // PAGE_TOKENS, _shape(rotary)[0] * PAGE_TOKENS
        )
        values = [*_values(importer, node.args[:7]), _int64(layer)]
        return _call(importer, "attend", kernel, values, node)

    def moe(self, node: Node, importer: Importer) -> Expression:
        x, _, _, down, chosen, activation = node.args
        kernel = self._kernels.moe(_shape(down)[0], chosen, _shape(x)[1], _shape(down)[2], activation)
        return _call(importer, "moe", kernel, _values(importer, node.args[:4]), node)

    def linear(self, node: Node, importer: Importer, residual: Node | None = None) -> Expression:
        n, k = _shape(node.args[1])
        bias = node.args[2] if len(node.args) > 2 else None
        kernel = None
        if self._fits(node) and _has_kernel(node) and node.args[1].name in packable_weights(node.graph):
            kernel = self._kernels.linear(n, k, bias=bias is not None, residual=residual is not None)
        if kernel is None:
            assert residual is None
            return _plain_linear(*_values(importer, node.args), importer=importer)
        operands = [*node.args[:2], *(item for item in (bias, residual) if item is not None)]
        name = f"linear_{n}_{k}" + ("_bias" if bias is not None else "") + ("_add" if residual is not None else "")
        return _call(importer, name, kernel, _values(importer, operands), node)

    def rms_norm(self, node: Node, importer: Importer) -> Expression:
        x, sizes, weight, epsilon = node.args
        assert len(sizes) == 1
        assert weight is not None
        kernel = self._kernels.rms_norm(sizes[0], epsilon) if _rank(x) == 2 and self._fits(x) else None
        operands = _values(importer, (x, weight))
        if kernel is None:
            return importer.block_builder.emit(relax.op.nn.rms_norm(*operands, axes=[-1], epsilon=epsilon))
        return _call(importer, f"rms_norm_{sizes[0]}", kernel, operands, node)

    def multiply(self, node: Node, importer: Importer) -> Expression:
        both, form = _gated_operand(node)
        return self._activation(node, importer, both, form)

    def gelu(self, node: Node, importer: Importer) -> Expression:
        plain = _is_tanh_gelu(node) and _rank(node) == 2
        return self._activation(node, importer, node.args[0] if plain else None, "gelu")

    def _activation(self, node: Node, importer: Importer, operand: Node | None, form: str) -> Expression:
        kernel = None
        if operand is not None and self._fits(node):
            kernel = self._kernels.activation(_shape(node)[1], form)
        if kernel is None:
            return _default(node, importer)
        return _call(importer, f"{form}_{_shape(node)[1]}", kernel, _values(importer, [operand]), node)

    def add(self, node: Node, importer: Importer) -> Expression:
        residual, product = node.args
        if (
            not node.kwargs
            and self._fits(node)
            and _has_kernel(product)
            and len(product.users) == 1
            and getattr(residual, "op", None) is not None
            and residual.meta["val"].shape == node.meta["val"].shape
            and product.args[1].name in packable_weights(node.graph)
        ):
            return self.linear(product, importer, residual)
        return _default(node, importer)

    def _fits(self, node: Node) -> bool:
        return str(node.meta["val"].dtype) == f"torch.{self._kernels.dtype}"


def _has_kernel(node: Node) -> bool:
    """Whether `node` is a linear layer of rows, with a weight that is not also its input."""
    return _is(node, "linear.default") and _rank(node.args[0]) == 2 and node.args[0] is not node.args[1]


def _gated_operand(node: Node) -> tuple[Node | None, str]:
    """Return x and "swiglu" where `node` is silu(x[:, :F]) * x[:, F:], written with chunk; "geglu" where it is gelu."""
    gate, up = node.args
    form = "swiglu" if _is(gate, "silu.default") else "geglu" if _is_tanh_gelu(gate) else ""
    if not (form and _is(up, "getitem") and _is(gate.args[0], "getitem")):
        return None, form
    (first, zero), (second, one) = gate.args[0].args, up.args
    if first is not second or (zero, one) != (0, 1) or not _is(first, "chunk.default"):
        return None, form
    x, pieces, *axis = first.args
    if pieces != 2 or axis not in ([1], [-1]) or _rank(x) != 2 or _shape(x)[1] != 2 * _shape(node)[1]:
        return None, form
    return x, form


def _is_tanh_gelu(node: Node) -> bool:
    return _is(node, "gelu.default") and node.kwargs.get("approximate") == "tanh"


def _plain_linear(x: Expression, weight: Expression, bias: Expression = None, *, importer: Importer) -> Expression:
    emit = importer.block_builder.emit
    product = emit(relax.op.matmul(x, emit(relax.op.permute_dims(weight))))
    return product if bias is None else emit(relax.op.add(product, bias))


def _default(node: Node, importer: Importer) -> Expression:
    return importer.create_convert_map()[node.target.__name__](node)


def _call(importer: Importer, name: str, kernel: Any, values: Sequence[Expression], node: Node) -> Expression:
    """Emit a call whose result has the first operand's rows and `node`'s width."""
    first = values[0].ty
    result = relax.TensorType([first.shape[0], _shape(node)[-1]], first.dtype)
    return importer.block_builder.emit(relax.call_tir(_add(importer, name, kernel), list(values), result))


def _call_inplace(importer: Importer, name: str, kernel: Any, values: Sequence[Expression]) -> Expression:
    """Emit a call that updates its first operand and returns it."""
    call = relax.op.call_tir_inplace(_add(importer, name, kernel), list(values), [0], values[0].ty)
    return importer.block_builder.emit(call)


def _add(importer: Importer, name: str, kernel: Any) -> Any:
    return importer.block_builder.add_func(kernel.without_attr("global_symbol"), name)


def _values(importer: Importer, nodes: Sequence[Node]) -> list[Expression]:
    return [importer.env[node] for node in nodes]


def _shape(node: Node) -> tuple[int, ...]:
    """Return a tensor's sizes; symbolic ones are not to be read."""
    return tuple(node.meta["val"].shape)


def _rank(node: Node) -> int:
    return len(node.meta["val"].shape)


def _is(node: Node, name: str) -> bool:
    return getattr(node, "op", None) == "call_function" and node.target.__name__ == name


def _int64(value: int) -> Expression:
    return tirx.const(value, "int64")
