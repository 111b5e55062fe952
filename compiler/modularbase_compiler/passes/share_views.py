"""Let equal views of one storage be one tensor, made once a call.

Layer after layer the planner gives the same storage to values of the same shape, and for each the VM would make a shape
and a tensor anew: at 24 layers 1,250 calls a step that compute nothing.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, relax

_ALLOCATION = "relax.memory.alloc_tensor"


@ir.transform.module_pass(opt_level=0, name="ShareViews")
class ShareViews:
    """Replace each `memory.alloc_tensor` that repeats one before it; storages live until their function returns."""

    def transform_module(self, module: Any, context: Any) -> Any:
        """Rewrite every Relax function."""
        functions = dict(module.functions.items())
        for name, function in functions.items():
            if isinstance(function, relax.Function):
                functions[name] = _Sharer().visit_expr(function)
        return ir.IRModule(functions, attrs=module.attrs)


@relax.expr_functor.mutator
class _Sharer(relax.PyExprMutator):  # type: ignore[misc]  # TVM ships no types
    def __init__(self) -> None:
        super().__init__()
        self._views: dict[int, list[tuple[Any, Any]]] = {}

    def visit_var_binding_(self, binding: Any) -> None:
        value = self.visit_expr(binding.value)
        if not (isinstance(value, relax.Call) and isinstance(value.op, ir.Op) and value.op.name == _ALLOCATION):
            super().visit_var_binding_(binding)
            return
        same = self._views.setdefault(tvm_ffi.structural_hash(value, map_free_vars=False), [])
        for other, variable in same:
            if tvm_ffi.structural_equal(value, other, map_free_vars=False):
                self.set_var_remap(binding.var, variable)
                return
        super().visit_var_binding_(binding)
        same.append((value, self.visit_expr(binding.var)))
