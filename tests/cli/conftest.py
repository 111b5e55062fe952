import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_packs import BASE, PACK, ROUTER, manifest

from modularbase_core import cli
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.resolve import line_up
from modularbase_core.sdk import Pack
from modularbase_core.text.template import Message
from modularbase_core.turn.stages import Finished, Routed, RoutedPack, Token

CATALOG = Catalog(
    tuple(
        InstalledPack(Pack(Path(one.id)), one, "modularbase-tiny")
        for one in (
            manifest("tiny-base", "base", BASE),
            manifest("tiny-router", "router", ROUTER),
            manifest("general_chat", "system", PACK),
            manifest("python_code", "domain", PACK, aliases=("python",)),
        )
    )
)


@dataclass
class FakeHost:
    """Answers with its script; an exception in it is raised there."""

    script: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    sampling: object = None
    packs: object = None
    closed: int = 0
    notes: tuple = ()
    held: list = field(default_factory=list)
    read_in: list = field(default_factory=list)
    resumed: list = field(default_factory=list)
    pinned: int = 0
    report: object = None
    catalog: Catalog = CATALOG
    tokenizer: object = field(
        default_factory=lambda: SimpleNamespace(vocabulary_size=8, decode=lambda ids: "".join(map("<{}>".format, ids)))
    )

    lineup = property(lambda self: line_up(self.catalog))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed += 1

    def resume(self, name):
        self.resumed.append(name)
        return list(self.held)

    def read(self, text, named, *, system=None):
        self.read_in.append((named, list(text)))
        return [*([system] if system else ()), Message("user", f"[{named}]"), Message("assistant", "OK.")]

    def memory(self):
        return self.report

    def pin(self):
        self.pinned += 1

    def chat(self, messages, sampling, *, packs=None):
        self.asked.append([(message.role, message.content) for message in messages])
        self.sampling, self.packs = sampling, packs
        return self._answer()

    def _answer(self):
        yield Routed(
            (RoutedPack("python_code", 0.75, 0.9), RoutedPack("general_chat", 0.25, 0.3)), {"python_code": 0.9}
        )
        for event in self.script or ["Hello", ", 世界"]:
            if isinstance(event, BaseException):
                raise event
            yield event if isinstance(event, Routed) else Token(event, 7, -0.5, ((7, -0.5),))
        yield Finished("stop", "!", 12, 2, notes=self.notes)


@pytest.fixture
def host(monkeypatch):
    """A fake host that `chat` gets instead of the real one."""
    fake = FakeHost()

    def build(config, *, progress=None, catalog=None, manager=None):
        fake.config, fake.manager = config, manager
        if progress:
            progress("compiling", 1, 2)
        return fake

    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: CATALOG)
    module = SimpleNamespace(build=build)
    monkeypatch.setitem(sys.modules, "modularbase_core.host", module)
    monkeypatch.setattr("modularbase_core.host", module, raising=False)
    return fake


class Terminal(io.TextIOWrapper):
    """Standard input that claims to be a terminal."""

    def isatty(self):
        return True


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, away from the user's own settings and cache."""
    monkeypatch.setattr("modularbase_core.cli.settings.default_config_file", lambda: tmp_path / "none.toml")
    monkeypatch.setenv("MODULARBASE_CACHE", str(tmp_path / "cache"))

    def call(*arguments, stdin=b"", terminal=False):
        kind = Terminal if terminal else io.TextIOWrapper
        monkeypatch.setattr("sys.stdin", kind(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as exited:
            cli.main(arguments)
        printed = capsys.readouterr()
        return Outcome(exited.value.code, printed.out, printed.err)

    return call
