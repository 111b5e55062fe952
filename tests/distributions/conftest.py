import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from functools import partial
from pathlib import Path

import pytest
from tiny_packs import BASE, PACK, ROUTER, manifest, write_pack

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
}


def run(*command, **more):
    """Run a command away from the machine's own pip settings; fail with what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more.pop("env", {})}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Build the wheels of the three distributions; the plugins carry tiny random packs."""
    out = tmp_path_factory.mktemp("wheels")
    sources = [ROOT]
    for name, packs in PACKS.items():
        ignore = shutil.ignore_patterns("__pycache__", "dist", "*.safetensors", "manifest.json")
        source = shutil.copytree(
            ROOT / "plugins_example" / name, tmp_path_factory.mktemp("source") / name, ignore=ignore
        )
        for seed, (place, described) in enumerate(packs.items()):
            write_pack(source / place, described, seed)
        sources.append(source)
    for source in sources:
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=source)
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


class FreshVenv:
    """A virtual environment that has our third-party requirements and nothing of ours."""

    def __init__(self, folder, index):
        self.folder, self.index = folder, index
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        variables = {"base": str(folder), "platbase": str(folder)}
        site = Path(
            sysconfig.get_path("purelib", "venv" if "venv" in sysconfig.get_scheme_names() else None, variables)
        )
        # what is installed here already counts as installed there, and is not downloaded again
        links = folder / "third-party"
        links.mkdir()
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for path in Path(place).iterdir():
                ours = path.name.lower().startswith(("modularbase", "_modularbase", "__editable__", "_editable"))
                if not ours and path.suffix != ".pth":
                    (links / path.name).symlink_to(path)
        (site / "third-party.pth").write_text(f"{links}\n")

    def pip(self, command, *arguments):
        """Run this Python's pip for that environment."""
        return run(sys.executable, "-m", "pip", "--python", self.folder / "bin" / "python", command, *arguments)

    def install(self, name):
        """Install by bare name from the index alone."""
        return self.pip("install", "--no-cache-dir", "--index-url", self.index, name)

    def modularbase(self, *arguments):
        """Run the installed command, outside the repository."""
        return run(self.folder / "bin" / "modularbase", *arguments, cwd=self.folder)


@pytest.fixture
def venv(tmp_path, index):
    """Make a fresh virtual environment outside the repository."""
    return FreshVenv(tmp_path / "venv", index)
