"""From torch operations to kernels: the importer's converters for what Relax would lower slowly or not at all.

Each reads one node of the exported graph and emits a call of a kernel, or of a request for one. A product or sum that
swallows its operand (a gate, a norm, a residual) leaves the swallowed call without users; dead code elimination removes
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, tirx

from modularbase_compiler.kernels import Family, Kernels
from modularbase_compiler.kernels.workspace import mixture_shapes, partial_shape
from modularbase_compiler.nodes import (
    activated_operand,
    gated_operand,
    is_call,
    is_linear_of_rows,
    is_tanh_gelu,
    packable_weights,
    rank,
    sizes,
)
from modularbase_core.sdk.architecture import PAGE_TOKENS
from modularbase_core.sdk.parameters import QUANTISATION_GROUP

# fx nodes, importers and Relax expressions: neither torch.fx nor TVM types their attributes usefully
Node = Any
Importer = Any
Expression = Any
Converter = Callable[[Node, Importer], Expression]


def converters(family: Family, kernels: Kernels) -> dict[str, Converter]:
    """Return the importer's custom conversions of one program for kernels of a family."""
    built = _Converters(family, kernels)
    return {
        "append_kv.default": built.append_kv,
        "append_hidden.default": built.append_hidden,
        "attend.default": built.attend,
        "moe.default": built.moe,
        "moe_groups.default": built.moe_groups,
        "linear.default": built.linear,
        "linear_groups.default": built.linear_groups,
        "embed_groups.default": built.embed_groups,
        "embedding.default": built.embedding,
        "to.dtype": built.convert,
        "rms_norm.default": built.rms_norm,
        "mul.Tensor": built.multiply,
        "gelu.default": built.gelu,
        "add.Tensor": built.add,
    }


class _Converters:
    def __init__(self, family: Family, kernels: Kernels) -> None:
        self._family = family
        self._kernels = kernels
        self._quantised: dict[tuple[Node, int], list[Expression]] = {}

    def append_kv(self, node: Node, importer: Importer) -> Expression:
        pages, _, _, layer, heads = node.args
        _, layers, _, kv_heads, page_size = sizes(pages)
        kernel = self._kernels.append_kv(layers, heads, kv_heads, page_size // PAGE_TOKENS)
        values = [*_values(importer, node.args[:3]), _int64(layer)]
        return _call_inplace(importer, "append_kv", kernel, values)

    def append_hidden(self, node: Node, importer: Importer) -> Expression:
        kernel = self._kernels.append_hidden(sizes(node.args[0])[-1])
        return _call_inplace(importer, "append_hidden", kernel, _values(importer, node.args))

    def attend(self, node: Node, importer: Importer) -> Expression:
        pages, rotary = node.args[1:3]
        layer, heads = node.args[7:]
        _, layers, _, kv_heads, page_size = sizes(pages)
        size, positions = page_size // PAGE_TOKENS, sizes(rotary)[0] * PAGE_TOKENS
        kernel = self._kernels.attend(layers, heads, kv_heads, size, positions)
        values = [*_values(importer, node.args[:7]), _int64(layer)]
        if not self._family.workspace:
            return _call(importer, "attend", kernel, values, node)
        result = ([values[0].ty.shape[0], heads * size], self._family.dtype)
        partials = (list(partial_shape(heads, size, positions)), "float32")
        return self._call_many(importer, "attend", kernel, values, [result, partials])[0]

    def moe(self, node: Node, importer: Importer) -> Expression:
        _, _, _, down, chosen, activation = node.args
        experts, width, ffn = sizes(down)
        kernel, values = self._kernels.moe(experts, chosen, width, ffn, activation), _values(importer, node.args[:4])
        if not self._family.workspace:
            return _call(importer, "moe", kernel, values, node)
        rows = values[0].ty.shape[0]
        results = [([rows, width], self._family.dtype), *mixture_shapes(rows, experts, chosen, width, ffn)]
        return self._call_many(importer, "moe", kernel, values, results)[0]

    def moe_groups(self, node: Node, importer: Importer) -> Expression:
        """Emit the choice of experts, their first products by row and choice, the activation, the others, the sum."""
        x, logits, gate_up, _, down, _, chosen, activation, bits = node.args
        experts, projected, width = sizes(gate_up)
        ffn = sizes(down)[2]
        rows = importer.env[x].ty.shape[0]
        pairs = rows * chosen
        order, first, gates = self._call_many(
            importer,
            f"route_{experts}_{chosen}",
            self._kernels.route(experts, chosen),
            _values(importer, (logits,)),
            [([pairs], "int32"), ([experts + 1], "int32"), ([pairs], "float32")],
        )

        def product(quantised: list[Expression], weight: Node, n: int, k: int, shared: int) -> Expression:
            kernel = self._kernels.expert_groups(n, k, bits, experts=experts, shared=shared)
            values = [*quantised, *_values(importer, (weight,)), order, first]
            made = [([pairs, n], self._family.dtype)]
            return self._call_many(importer, f"expert_groups_{n}_{k}", kernel, values, made)[0]

        made = product(self._quantise(x, bits, importer), gate_up, projected, width, chosen)
        kernel = self._kernels.quantise(ffn, bits, form=activation)
        results = self._quantised_rows(pairs, ffn)
        activated = self._call_many(importer, f"{activation}_quantise_{ffn}", kernel, [made], results)
        parts = product(activated, down, width, ffn, 1)
        kernel = self._kernels.combine(chosen, width)
        results = [([rows, width], self._family.dtype)]
        return self._call_many(importer, f"combine_{width}", kernel, [gates, parts], results)[0]

    def _call_many(
        self,
        importer: Importer,
        name: str,
        kernel: Any,
        values: Sequence[Expression],
        results: Sequence[tuple[list[Any], str]],
    ) -> list[Expression]:
        """Emit a call with results of these shapes and dtypes."""
        types = [relax.TensorType(shape, dtype) for shape, dtype in results]
        call = relax.call_tir(_add(importer, name, kernel), list(values), types if len(types) > 1 else types[0])
        made = importer.block_builder.emit(call)
        if len(types) == 1:
            return [made]
        return [importer.block_builder.emit(relax.TupleGetItem(made, item)) for item in range(len(types))]

    def linear(self, node: Node, importer: Importer, residual: Node | None = None) -> Expression:
        n, k = sizes(node.args[1])
        bias = node.args[2] if len(node.args) > 2 else None
        if not (self._fits(node) and is_linear_of_rows(node) and node.args[1].name in packable_weights(node.graph)):
            assert residual is None
            return _plain_linear(*_values(importer, node.args), importer=importer)
        stored = str(importer.env[node.args[1]].ty.dtype)
        kernel = self._kernels.linear(n, k, bias=bias is not None, residual=residual is not None, stored=stored)
        operands = [*node.args[:2], *(item for item in (bias, residual) if item is not None)]
        return _call(importer, _linear_name(node, bias, residual), kernel, _values(importer, operands), node)

    def linear_groups(self, node: Node, importer: Importer, residual: Node | None = None) -> Expression:
        x, weight, _, bias, bits = node.args
        n, k = sizes(weight)
        kernel = self._kernels.linear_groups(n, k, bits, bias=bias is not None, residual=residual is not None)
        rest = [weight, *(item for item in (bias, residual) if item is not None)]
        values = [*self._quantise(x, bits, importer), *_values(importer, rest)]
        return _call(importer, _linear_name(node, bias, residual), kernel, values, node, self._family.dtype)

    def _quantise(self, x: Node, bits: int, importer: Importer) -> list[Expression]:
        """Emit what makes quantised rows of `x`, once for all that read it; with the norm or gate that made them."""
        if (x, bits) in self._quantised:
            return self._quantised[x, bits]
        width = sizes(x)[1]
        operand, form = activated_operand(x)
        if is_call(x, "rms_norm.default") and x.args[2] is not None and rank(x.args[0]) == 2:
            kernel = self._kernels.quantise(width, bits, epsilon=x.args[3])
            values, name = _values(importer, (x.args[0], x.args[2])), "rms_norm_quantise"
        elif operand is not None:
            kernel, values = self._kernels.quantise(width, bits, form=form), _values(importer, (operand,))
            name = f"{form}_quantise"
        else:
            kernel, values, name = self._kernels.quantise(width, bits), _values(importer, (x,)), "quantise"
        results = self._quantised_rows(values[0].ty.shape[0], width)
        self._quantised[x, bits] = self._call_many(importer, f"{name}_{width}", kernel, values, results)
        return self._quantised[x, bits]

    def _quantised_rows(self, rows: Any, width: int) -> list[tuple[list[Any], str]]:
        """Return the shapes and dtypes of quantised rows: values, scales, and zeros where the family has them."""
        groups = width // QUANTISATION_GROUP
        results = [([rows, width], "int8"), ([rows, groups], "float32"), ([rows, groups], "int32")]
        return results if self._family.zeros else results[:2]

    def embed_groups(self, node: Node, importer: Importer) -> Expression:
        tokens, weight, _, bits = node.args
        kernel = self._kernels.embed_groups(sizes(weight)[0], sizes(weight)[1], bits)
        values = _values(importer, (tokens, weight))
        return _call(importer, "embed_groups", kernel, values, node, self._family.dtype)

    def embedding(self, node: Node, importer: Importer) -> Expression:
        """Look rows up; of a table in another dtype they become the working one."""
        rows = _default(node, importer)
        if not self._fits(node) or str(rows.ty.dtype) == self._family.dtype:
            return rows
        return importer.block_builder.emit(relax.op.astype(rows, self._family.dtype))

    def convert(self, node: Node, importer: Importer) -> Expression:
        """Convert to a dtype what is not of it yet; a look-up already gives the working one."""
        value = importer.env[node.args[0]]
        if f"torch.{value.ty.dtype}" == str(node.meta["val"].dtype):
            return value
        return _default(node, importer)

    def rms_norm(self, node: Node, importer: Importer) -> Expression:
        x, widths, weight, epsilon = node.args
        assert len(widths) == 1
        assert weight is not None
        operands = _values(importer, (x, weight))
        if not (rank(x) == 2 and self._fits(x) and self._in_vectors(widths[0])):
            return importer.block_builder.emit(relax.op.nn.rms_norm(*operands, axes=[-1], epsilon=epsilon))
        return _call(importer, f"rms_norm_{widths[0]}", self._kernels.rms_norm(widths[0], epsilon), operands, node)

    def multiply(self, node: Node, importer: Importer) -> Expression:
        both, form = gated_operand(node)
        return self._activation(node, importer, both, form)

    def gelu(self, node: Node, importer: Importer) -> Expression:
        plain = is_tanh_gelu(node) and rank(node) == 2
        return self._activation(node, importer, node.args[0] if plain else None, "gelu")

    def _activation(self, node: Node, importer: Importer, operand: Node | None, form: str) -> Expression:
        if operand is None or not self._fits(node) or not self._in_vectors(sizes(node)[1]):
            return _default(node, importer)
        kernel = self._kernels.activation(sizes(node)[1], form)
        return _call(importer, f"{form}_{sizes(node)[1]}", kernel, _values(importer, [operand]), node)

    def add(self, node: Node, importer: Importer) -> Expression:
        residual, product = node.args
        if (
            not node.kwargs
            and self._fits(node)
            and getattr(residual, "op", None) is not None
            and len(getattr(product, "users", ())) == 1
            and residual.meta["val"].shape == node.meta["val"].shape
        ):
            if is_call(product, "linear_groups.default"):
                return self.linear_groups(product, importer, residual)
            if is_linear_of_rows(product) and product.args[1].name in packable_weights(node.graph):
                return self.linear(product, importer, residual)
        return _default(node, importer)

    def _fits(self, node: Node) -> bool:
        return str(node.meta["val"].dtype) == f"torch.{self._family.dtype}"

    def _in_vectors(self, width: int) -> bool:
        return width % self._family.vector == 0


def _linear_name(node: Node, bias: Node | None, residual: Node | None) -> str:
    n, k = sizes(node.args[1])
    name = "linear_groups" if is_call(node, "linear_groups.default") else "linear"
    return f"{name}_{n}_{k}" + ("_bias" if bias is not None else "") + ("_add" if residual is not None else "")


def _plain_linear(x: Expression, weight: Expression, bias: Expression = None, *, importer: Importer) -> Expression:
    emit = importer.block_builder.emit
    if weight.ty.dtype != x.ty.dtype:  # a router computes in float32, whatever its weights are held in
        weight = emit(relax.op.astype(weight, x.ty.dtype))
    product = emit(relax.op.matmul(x, emit(relax.op.permute_dims(weight))))
    return product if bias is None else emit(relax.op.add(product, bias))


def _default(node: Node, importer: Importer) -> Expression:
    return importer.create_convert_map()[node.target.__name__](node)


def _call(
    importer: Importer, name: str, kernel: Any, values: Sequence[Expression], node: Node, dtype: str | None = None
) -> Expression:
    """Emit a call whose result has the first operand's rows and `node`'s width; its dtype too unless one is given."""
    first = values[0].ty
    result = relax.TensorType([first.shape[0], sizes(node)[-1]], dtype or first.dtype)
    return importer.block_builder.emit(relax.call_tir(_add(importer, name, kernel), list(values), result))


def _call_inplace(importer: Importer, name: str, kernel: Any, values: Sequence[Expression]) -> Expression:
    """Emit a call that updates its first operand and returns it."""
    call = relax.op.call_tir_inplace(_add(importer, name, kernel), list(values), [0], values[0].ty)
    return importer.block_builder.emit(call)


def _add(importer: Importer, name: str, kernel: Any) -> Any:
    return importer.block_builder.add_func(kernel.without_attr("global_symbol"), name)


def _values(importer: Importer, nodes: Sequence[Node]) -> list[Expression]:
    return [importer.env[node] for node in nodes]


def _int64(value: int) -> Expression:
    return tirx.const(value, "int64")
