from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tiny_packs import PACK, catalog_of, manifest, write_pack, write_tiny_set
from tiny_wheels import FakePip

from modularbase_core.packs.catalog import Catalog, InstalledPack, LoadedPlugin
from modularbase_core.packs.pip import Pip
from modularbase_core.sdk import Pack
from modularbase_core.sdk.manifest import WEIGHTS_FILE, write_manifest


@dataclass
class Site:
    """What is installed: base, router and general chat of one distribution, a Python pack of another.

    The distributions are none of those that may be there where the tests run.
    """

    folder: Path
    nano: str = "modularbase-tiny"
    python: str = "modularbase-pack-tiny-python"
    pip: FakePip = field(default_factory=FakePip)

    def __post_init__(self):
        self.directories = write_tiny_set(self.folder / "site")
        packs = catalog_of(self.directories).packs
        self.catalog = Catalog(
            tuple(replace(one, distribution=self.python if one.id == "python_code" else self.nano) for one in packs),
            plugins=(LoadedPlugin("nano", self.nano), LoadedPlugin("python_code", self.python)),
        )
        self.versions = {self.nano: "1.0.0", self.python: "1.0.0"}

    def discover(self, *more, store=None, **keys):
        """Stand in for the catalog's."""
        stored = (replace(one, pack=replace(one.pack, store=store)) for one in self.catalog.packs)
        return replace(self.catalog, packs=tuple(stored))

    def add(self, directory, distribution):
        """Make a pack in `directory` an installed one."""
        pack = Pack(directory)
        one = InstalledPack(pack, pack.manifest, distribution)
        self.catalog = replace(self.catalog, packs=(*self.catalog.packs, one))
        return one

    def add_broken(self, broken):
        """Have a plugin that is broken."""
        self.catalog = replace(self.catalog, broken=(broken,))

    def add_apart(self, id="apart"):
        """Install a pack whose weights are to be downloaded; return it and them."""
        described = manifest(id, "domain", PACK)
        directory = write_pack(self.folder / "site" / id, described)
        content = (directory / WEIGHTS_FILE).read_bytes()
        write_manifest(directory, replace(described, downloads={WEIGHTS_FILE: "http://127.0.0.1:9/w"}))
        (directory / WEIGHTS_FILE).unlink()
        return self.add(directory, f"modularbase-pack-{id}"), content

    def keep(self, one, content):
        """Put downloaded weights where `fetch` would."""
        path = self.folder / "cache" / "weights" / one.manifest.files[WEIGHTS_FILE]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Have a fake installation, and a pip that only pretends."""
    found = Site(tmp_path)
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", found.discover)
    for module in ("install", "remove", "lock"):
        monkeypatch.setattr(f"modularbase_core.cli.pack.{module}.pip_of", lambda quiet: Pip(runner=found.pip))
    monkeypatch.setattr("modularbase_core.packs.install.installed_version", found.versions.get)
    monkeypatch.setattr("modularbase_core.packs.lockfile._version", found.versions.__getitem__)
    monkeypatch.setattr("modularbase_core.packs.lockfile._address", lambda name: "")
    return found


@pytest.fixture
def settings(tmp_path):
    """A settings file with comments, which its owner alone may read."""
    path = tmp_path / "settings.toml"
    path.write_text("# mine\nslots = 3  # enough\n\n# and this\nthreads = 2\n")
    path.chmod(0o600)
    return path
