"""Where the graph of a build comes from: a file that fits, or else torch, which is imported for that alone."""

from __future__ import annotations

from modularbase_compiler.kernels import family_of
from modularbase_compiler.portable import Graph, read_graph
from modularbase_core.device.artefact import Build
from modularbase_core.device.graphs import find_graph
from modularbase_core.errors import TORCH_REMEDY, ArtefactError


def graph_of(build: Build) -> Graph:
    """Return the graph of what is to be built.

    Raises ArtefactError where no file of it can be used and torch is not installed.
    """
    fault = None
    if path := find_graph(build):
        try:
            return read_graph(path, build.architecture)
        except ArtefactError as error:
            fault = error  # torch, if it is there, needs no file
    try:
        from modularbase_compiler.export import export_graph
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise fault or ArtefactError(
            f"no graph of this {build.architecture.kind} in {build.precision} for {build.target.name} came with the "
            f"installed packs, and torch, which makes one, is not installed; {TORCH_REMEDY}"
        ) from None
    family = family_of(build.target.name, build.dtype)
    return export_graph(build.architecture, family, build.dtype, build.precision)
