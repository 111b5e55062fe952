"""Give every allocation that is still dynamic the size of its largest call.

Results are not planned by StaticPlanBlockMemory; allocated by their actual rows, each new row count would leave
another block in the VM's pool for good. At their bound, one block serves all calls, and the total is known.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, sym, tirx


@ir.transform.module_pass(opt_level=0, name="BoundStorage")
class BoundStorage:
    """Replace symbolic sizes of `memory.alloc_storage` by the function's `tir_var_upper_bound`."""

    def transform_module(self, module: Any, context: Any) -> Any:
        """Rewrite every Relax function."""
        functions = dict(module.functions.items())
        for name, function in functions.items():
            if isinstance(function, relax.Function):
                functions[name] = _Bounder(function).visit_expr(function)
        return ir.IRModule(functions, attrs=module.attrs)


@relax.expr_functor.mutator
class _Bounder(relax.PyExprMutator):  # type: ignore[misc]  # TVM ships no types
    def __init__(self, function: Any) -> None:
        super().__init__()
        self._bounds = dict(function.attrs.get("tir_var_upper_bound", {}))

    def visit_call_(self, op: Any) -> Any:
        call = super().visit_call_(op)
        if not (isinstance(call.op, ir.Op) and call.op.name == "relax.memory.alloc_storage"):
            return call
        sizes = [self._bound(size) for size in call.args[0].values]
        return relax.Call(call.op, [relax.ShapeExpr(sizes), *call.args[1:]], call.attrs, call.ty_args)

    def _bound(self, size: Any) -> Any:
        analyzer = sym.Analyzer()
        for variable in tirx.analysis.undefined_vars(size):
            if variable.name in self._bounds:
                analyzer.bind(variable, ir.Range(1, int(self._bounds[variable.name]) + 1))
        return tirx.const(analyzer.const_int_bound(size).max_value, "int64")
