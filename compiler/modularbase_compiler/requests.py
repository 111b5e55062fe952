"""Kernels that are asked for and not made yet: a graph calls these, so it is the same for every processor.

A request is an empty PrimFunc that carries, as JSON, the method of `Kernels` and its arguments. Equal requests are
equal functions.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, Final, cast

from tvm import ir, relax, tirx

from modularbase_compiler.kernels import Kernels
from modularbase_core.errors import ArtefactError

_REQUEST: Final = "modularbase.kernel"
_METHODS: Final = frozenset(name for name in vars(Kernels) if not name.startswith("_"))


def requests() -> Kernels:
    """Return a set whose kernels are requests."""
    return cast(Kernels, _Requests())


def with_kernels(module: Any, kernels: Kernels) -> Any:
    """Return `module` with a kernel in place of each request; kernels that turn out equal become one.

    Raises ArtefactError where the module holds, or calls, anything that is neither a request nor Relax's own: it may
    come from a file.
    """
    builder = relax.BlockBuilder()
    functions = {name: item for name, item in module.functions.items() if isinstance(item, relax.Function)}
    names = {
        name: builder.add_func(_made(item, kernels).without_attr("global_symbol"), name.name_hint)
        for name, item in module.functions.items()
        if name not in functions
    }
    for name, function in functions.items():
        _check(function)
        builder.add_func(renamed(function, names), name.name_hint)
    return builder.get()


def renamed(function: Any, names: dict[Any, Any]) -> Any:
    """Return a Relax function that calls other global names."""
    return _Renamer(names).visit_expr(function)


class _Requests:
    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method not in _METHODS:
            raise AttributeError(method)
        signature = inspect.signature(getattr(Kernels, method))

        def request(*values: object, **options: object) -> Any:
            bound = signature.bind(self, *values, **options)
            bound.apply_defaults()
            _, *rest = bound.arguments.items()  # without self
            asked = json.dumps({"kernel": method, **dict(rest)}, sort_keys=True)
            return tirx.PrimFunc([], tirx.Evaluate(0)).with_attr(_REQUEST, asked)

        return request


def _made(function: Any, kernels: Kernels) -> Any:
    """Make the kernel that a function asks for."""
    asked = (function.attrs or {}).get(_REQUEST)
    try:
        arguments = json.loads(str(asked))
        method = arguments.pop("kernel")
        if method not in _METHODS:
            raise KeyError(method)
        inspect.signature(getattr(kernels, method)).bind(**arguments)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ArtefactError(f"a graph asks for {asked!r}, which is no kernel; make the graph again") from None
    return getattr(kernels, method)(**arguments)


def _check(function: Any) -> None:
    foreign: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, relax.ExternFunc) or (isinstance(node, ir.Op) and not node.name.startswith("relax.")):
            foreign.append(node)

    relax.analysis.post_order_visit(function, visit)
    if foreign:
        raise ArtefactError(f"a graph calls {foreign[0]}, which is no operator of a network; make the graph again")


@relax.expr_functor.mutator
class _Renamer(relax.PyExprMutator):  # type: ignore[misc]  # TVM ships no types
    def __init__(self, names: dict[Any, Any]) -> None:
        super().__init__()
        self._names = names

    def visit_global_var_(self, op: Any) -> Any:
        return self._names.get(op, op)
