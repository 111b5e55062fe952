"""The passes from an imported module to what the VM runs: the compiler's table of contents."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from modularbase_compiler.passes.bound_storage import BoundStorage
from modularbase_compiler.passes.share_views import ShareViews


def lower(module: Any, target: Any) -> Any:
    """Run every phase; returns a module of PrimFuncs and VM-ready Relax functions."""
    with target:
        return tvm.ir.transform.Sequential([*tidy(), *legalise(), *schedule(target), *plan_memory(), *to_vm()])(module)


def tidy() -> list[Any]:
    """Drop what converters swallowed."""
    return [relax.transform.DeadCodeElimination(), relax.transform.CanonicalizeBindings()]


def legalise() -> list[Any]:
    """Turn the operators that have no kernel of ours into loops, and fuse those."""
    return [
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]


def schedule(target: Any) -> list[Any]:
    """Give those loops to GPU threads; kernels of ours are scheduled already."""
    if target.kind.name != "cuda":
        return []
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    return [dlight.ApplyDefaultSchedule(*rules)]


def plan_memory() -> list[Any]:
    """Write results into storage that is shared and static, bounded by the limits of a call."""
    return [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        BoundStorage(),
        ShareViews(),
        relax.transform.CanonicalizeBindings(),
    ]


def to_vm() -> list[Any]:
    """Lower to the VM's own instructions; nothing is killed early, as storage is planned and views are shared."""
    return [
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
