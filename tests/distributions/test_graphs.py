"""The graphs that the packs of this repository bring."""

from pathlib import Path

import pytest

from modularbase_core.device.graphs import graph_name, shipped_builds
from modularbase_core.sdk import Pack

PACKS = sorted(path.parent for path in Path(__file__).parents[2].glob("plugins_example/*/*/*/manifest.json"))


@pytest.mark.parametrize("folder", PACKS, ids=lambda folder: folder.name)
def test_every_pack_compiles_without_torch_in_any_precision(folder):
    pack = Pack(folder)
    fitting = sorted(graph_name(build) for build in shipped_builds(pack.manifest.network))
    held = sorted(path.name for path in pack.graphs.iterdir())
    assert held == fitting, "run `modularbase pack graphs plugins_example/*`"
    assert sum(path.stat().st_size for path in pack.graphs.iterdir()) < 128 << 10
