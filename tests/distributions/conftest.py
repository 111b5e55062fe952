import hashlib
import http.server
import shutil
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from fresh_venv import FreshVenv, build_wheel
from tiny_packs import BASE, PACK, ROUTER, manifest, write_pack

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKS = {
    "modularbase-nano": {
        "modularbase_nano/base": manifest("tiny-base", "base", BASE),
        "modularbase_nano/router": manifest("tiny-router", "router", ROUTER),
        "modularbase_nano/general_chat": manifest("general_chat", "system", PACK),
    },
    "modularbase-pack-python": {
        "modularbase_pack_python/python_code": manifest("python_code", "domain", PACK, aliases=("python",)),
    },
    "modularbase-pack-reasoning": {"modularbase_pack_reasoning/reasoning": manifest("reasoning", "domain", PACK)},
    "modularbase-pack-medical": {"modularbase_pack_medical/medical": manifest("medical", "domain", PACK)},
    "modularbase-pack-legal": {"modularbase_pack_legal/legal": manifest("legal", "domain", PACK)},
    "modularbase-pack-creative": {
        "modularbase_pack_creative/creative_writing": manifest("creative_writing", "domain", PACK)
    },
    "modularbase-pack-echo": {},
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Build the wheels of all our distributions; the plugins carry tiny random packs."""
    out = tmp_path_factory.mktemp("wheels")
    sources = [ROOT]
    for name, packs in PACKS.items():
        ignore = shutil.ignore_patterns("__pycache__", "dist", "*.safetensors", "manifest.json")
        source = shutil.copytree(
            ROOT / "plugins_example" / name, tmp_path_factory.mktemp("source") / name, ignore=ignore
        )
        for seed, (place, described) in enumerate(packs.items()):
            # with the distribution's own version, as whoever ships it would write it
            version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
            for_any = replace(described, version=version, base_compatibility=("1",) if described.base else ())
            write_pack(source / place, for_any, seed)
        sources.append(source)
    for source in sources:
        build_wheel(source, out)
    return {path.name.split("-")[0].replace("_", "-"): path for path in out.glob("*.whl")}


@pytest.fixture(scope="session")
def index(wheels, tmp_path_factory):
    """Serve a simple index (PEP 503) of the wheels on this machine alone; return its address."""
    root = tmp_path_factory.mktemp("index")
    for name, wheel in wheels.items():
        page = root / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        shutil.copy(wheel, page.parent)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        page.write_text(f'<!DOCTYPE html><a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/simple/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def venv(tmp_path, index):
    """Make a fresh virtual environment outside the repository."""
    return FreshVenv(tmp_path / "venv", index)
