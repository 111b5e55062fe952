"""What packs need compiled: each distinct architecture once, with the graphs that any of its packs bring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modularbase_core.device.artefact import Build, plan_build
from modularbase_core.device.target import Target
from modularbase_core.packs.catalog import InstalledPack
from modularbase_core.sdk.architecture import architecture_key


def plan_builds(packs: Iterable[InstalledPack], target: Target, precisions: Mapping[str, str]) -> list[Build]:
    """Plan what these packs run as; raises ArtefactError for a precision that the target has no kernels for."""
    sharing: dict[str, list[InstalledPack]] = {}
    for one in packs:
        sharing.setdefault(architecture_key(one.manifest.network), []).append(one)
    return [
        plan_build(those[0].manifest.network, target, precisions, [one.pack.graphs for one in those])
        for those in sharing.values()
    ]
