"""A fresh virtual environment for tests of what is installed: our third-party requirements and nothing of ours."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def attempt(*command, **more):
    """Run a command away from the machine's own pip settings; return how it ended."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more.pop("env", {})}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **more)


def run(*command, **more):
    """Run a command as `attempt` does; fail with what it said."""
    done = attempt(*command, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(project, out):
    """Build a project's wheel into the folder `out`, with what is installed here; return the wheel."""
    before = set(out.glob("*.whl"))
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=project)
    (wheel,) = set(out.glob("*.whl")) - before
    return wheel


class FreshVenv:
    """A virtual environment that has our third-party requirements and nothing of ours."""

    def __init__(self, folder, index=None):
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

    def install_wheels(self, *wheels):
        """Install wheels without looking for anything else."""
        return self.pip("install", "--no-index", "--no-deps", *wheels)

    def attempt(self, *arguments, **more):
        """Run its Python, outside the repository; return how it ended."""
        return attempt(self.folder / "bin" / "python", *arguments, cwd=self.folder, **more)

    def modularbase(self, *arguments, **more):
        """Run the installed command, outside the repository."""
        return run(self.folder / "bin" / "modularbase", *arguments, cwd=self.folder, **more)
