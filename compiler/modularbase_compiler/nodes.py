"""What the nodes of an exported graph are, and who reads which weights."""

from __future__ import annotations

from typing import Any

Node = Any  # a torch.fx.Node, whose attributes have no useful types


def packable_weights(graph: Any) -> set[str]:
    """Name the placeholders that linear layers alone read, as weights: those may have the kernel's own layout."""
    return {
        node.name
        for node in graph.find_nodes(op="placeholder")
        if node.users and all(is_linear_of_rows(user) and user.args[1] is node for user in node.users)
    }


def table_weights(graph: Any) -> set[str]:
    """Name the placeholders that are only looked up, row by row."""
    return {
        node.name
        for node in graph.find_nodes(op="placeholder")
        if node.users and all(is_call(user, "embedding.default") and user.args[0] is node for user in node.users)
    }


def quantised_weights(graph: Any) -> tuple[dict[str, int], set[str]]:
    """Return the bits of each quantised weight by its placeholder's name, and the names of their scales."""
    bits, scales = {}, set()
    for node in graph.nodes:
        if is_call(node, "linear_groups.default") or is_call(node, "embed_groups.default"):
            bits[node.args[1].name] = node.args[-1]
            scales.add(node.args[2].name)
        elif is_call(node, "moe_groups.default"):
            for weight, scale in (node.args[2:4], node.args[4:6]):
                bits[weight.name] = node.args[-1]
                scales.add(scale.name)
    return bits, scales


def is_linear_of_rows(node: Node) -> bool:
    """Whether `node` is a linear layer of rows, with a weight that is not also its input."""
    return is_call(node, "linear.default") and rank(node.args[0]) == 2 and node.args[0] is not node.args[1]


def activated_operand(node: Node) -> tuple[Node | None, str]:
    """Return what `node` is an activation of and its form, see `graph.ops.activate`; None where it is none of them."""
    if is_call(node, "mul.Tensor"):
        return gated_operand(node)
    return (node.args[0], "gelu") if is_tanh_gelu(node) and rank(node) == 2 else (None, "")


def gated_operand(node: Node) -> tuple[Node | None, str]:
    """Return x and "swiglu" where `node` is silu(x[:, :F]) * x[:, F:], written with chunk; "geglu" where it is gelu."""
    gate, up = node.args
    form = "swiglu" if is_call(gate, "silu.default") else "geglu" if is_tanh_gelu(gate) else ""
    if not (form and is_call(up, "getitem") and is_call(gate.args[0], "getitem")):
        return None, form
    (first, zero), (second, one) = gate.args[0].args, up.args
    if first is not second or (zero, one) != (0, 1) or not is_call(first, "chunk.default"):
        return None, form
    x, pieces, *axis = first.args
    if pieces != 2 or axis not in ([1], [-1]) or rank(x) != 2 or sizes(x)[1] != 2 * sizes(node)[1]:
        return None, form
    return x, form


def is_tanh_gelu(node: Node) -> bool:
    """Whether `node` is GELU in its tanh form."""
    return is_call(node, "gelu.default") and node.kwargs.get("approximate") == "tanh"


def is_call(node: Node, name: str) -> bool:
    """Whether `node` calls the operation of that name."""
    return getattr(node, "op", None) == "call_function" and node.target.__name__ == name


def sizes(node: Node) -> tuple[int, ...]:
    """Return a tensor's sizes; symbolic ones are not to be read."""
    return tuple(node.meta["val"].shape)


def rank(node: Node) -> int:
    """Return a tensor's number of axes."""
    return len(node.meta["val"].shape)
