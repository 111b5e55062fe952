"""The pack author's surface: manifest, architecture, hooks. Imports neither torch nor TVM nor numpy."""

from modularbase_core.sdk.manifest import Manifest
from modularbase_core.sdk.markers import hookimpl
from modularbase_core.sdk.pack import Pack

__all__ = ["Manifest", "Pack", "hookimpl"]
