"""Builds and wires a running model; `build` is the way in."""

from modularbase_core.host.builds import plan_builds
from modularbase_core.host.chat import Host, build
from modularbase_core.host.parts import Parts, target_of

__all__ = ["Host", "Parts", "build", "plan_builds", "target_of"]
