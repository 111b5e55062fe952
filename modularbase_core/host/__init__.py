"""Builds and wires a running model; `build` is the way in."""

from modularbase_core.host.chat import Host, build
from modularbase_core.host.parts import Parts, architectures, target_of

__all__ = ["Host", "Parts", "architectures", "build", "target_of"]
