"""The floors of a running model: what is installed, compiled, planned, loaded, in that order.

Nothing is allocated before the budget admits it. The one place that knows every floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from modularbase_core.config import EngineConfig
from modularbase_core.context.hot import HotPages, make_pages
from modularbase_core.device.artefact import Build, ensure_artefacts
from modularbase_core.device.executable import Device, Executable
from modularbase_core.device.layouts import PlacedWeights
from modularbase_core.device.metadata import read_meta
from modularbase_core.device.target import Target, cpu_target, cuda_target
from modularbase_core.device.weights import Routing, read_routing, read_weights
from modularbase_core.engine.scheduler import Engine
from modularbase_core.errors import ConfigError, WeightsError, nearest
from modularbase_core.host.memory import MAX_RUNNING, divide, pack_bytes, pages_of
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.resolve import Lineup, line_up
from modularbase_core.packs.slots import Slots
from modularbase_core.sdk import fusion as sdk
from modularbase_core.sdk.architecture import (
    PAGE_TOKENS,
    Architecture,
    BaseArchitecture,
    PackArchitecture,
    RouterArchitecture,
    architecture_key,
)
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.decode import Decoding
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.fuse import Fusion
from modularbase_core.turn.fusions import BUILTIN, Shares
from modularbase_core.turn.route import Routes
from modularbase_core.turn.rows import RowBuffers
from modularbase_core.turn.understand import Understanding

Progress = Callable[[str, int, int], None]

PREFILL_ROWS = 256


class Parts:
    """The floors of one model, from the packs on disk to the engine."""

    def __init__(
        self, config: EngineConfig, catalog: Catalog, progress: Progress | None, hooks: Hooks | None = None
    ) -> None:
        self.config, self.catalog, self.hooks = config, catalog, hooks
        self._fusion = self._named_fusion()
        self.lineup = line_up(catalog, config.base)
        architecture = self.lineup.base.manifest.architecture
        assert isinstance(architecture, BaseArchitecture)
        self.base = architecture
        self.tokenizer = Tokenizer.load(self.lineup.base.pack.tokenizer)
        if self.tokenizer.vocabulary_size > self.base.vocabulary_size:
            raise WeightsError(
                f"the tokenizer of {self.lineup.base.id!r} has {self.tokenizer.vocabulary_size} tokens but its "
                f"embedding {self.base.vocabulary_size}; install the base again"
            )
        directories = self._compile(progress)
        metas = {key: read_meta(path) for key, path in directories.items()}
        self.budget, self._pack_pages, self.lineup = divide(config, self.lineup, metas)
        self.device = Device(config.device, threads=config.threads or None)
        self.executables = {key: Executable.load(path, self.device) for key, path in directories.items()}
        self._buffers = RowBuffers(self.device)
        self._by_id = {one.id: one for one in self.lineup.routable}

    def engine(self, *, prefill_rows: int = PREFILL_ROWS) -> Engine:
        """Load the residents and wire the stages. prefill_rows: most tokens of a prompt in one call."""
        executable = self._executable(self.lineup.base)
        weights = self._placed(self.lineup.base)
        hot = HotPages(executable.meta, self.device, self.budget.page_count)
        understanding = Understanding(
            weights.bind("understand"), weights.bind("recall_hidden"), hot, self._buffers, prefill_rows
        )
        mix, compare, fuse = (weights.bind(program) for program in ("mix", "compare", "fuse"))
        shares = Shares(self._fusion, self.config.contradiction)
        fusion = Fusion(mix, compare, fuse, hot, self._buffers, shares)
        fallback = self.lineup.general_chat.id
        routes = Routes(
            self._placed(self.lineup.router).bind("route"),
            self._keys(),
            fallback,
            understanding,
            self._buffers,
            packs=[one.id for one in self.lineup.routable],
            hooks=self.hooks,
            threshold=self.config.threshold,
            packs_per_turn=self.config.packs_per_turn,
        )
        slots: Slots[PlacedPack] = Slots(self._load, self.config.slots)
        slots.add_resident(fallback)
        return Engine(
            understanding,
            routes,
            slots,
            Decoding(understanding, fusion, hot, self._buffers, prefill_rows),
            self.tokenizer,
            fallback=fallback,
            max_running=MAX_RUNNING,
            max_tokens=(self.budget.page_count - 1) * PAGE_TOKENS,
            hooks=self.hooks,
        )

    def _compile(self, progress: Progress | None) -> dict[str, Path]:
        target = target_of(self.config.device)
        wanted = architectures(self.lineup)
        builds = [Build(architecture=one, target=target, dtype=target.dtype) for one in wanted]
        paths = ensure_artefacts(builds, self.config.cache_dir, progress)
        return {architecture_key(one): path for one, path in zip(wanted, paths, strict=True)}

    def _executable(self, pack: InstalledPack) -> Executable:
        return self.executables[architecture_key(pack.manifest.architecture)]

    def _placed(self, pack: InstalledPack) -> PlacedWeights:
        values = read_weights(pack.pack.weights, pack.manifest.architecture)  # checked before anything is made
        weights = PlacedWeights(self._executable(pack), self.device)
        weights.fill(values)
        return weights

    def _load(self, pack_id: str, old: PlacedPack | None) -> PlacedPack:
        """Load a pack into a slot, into the memory of the one that was there where they are of one shape."""
        pack = self._by_id[pack_id]
        executable = self._executable(pack)
        if pack_id != self.lineup.general_chat.id:  # a resident, planned by itself, takes no slot
            self.budget.admit(pack_id, pack_bytes(executable.meta, self._pack_pages))
        assert isinstance(pack.manifest.architecture, PackArchitecture)
        values = read_weights(pack.pack.weights, pack.manifest.architecture)  # before the old pack is given up
        if old is not None and old.weights.executable is executable:
            weights, pages = old.weights, old.pages
        else:
            if old is not None:
                old.vacate()
            weights = PlacedWeights(executable, self.device)
            pages = make_pages(pages_of(executable.meta), self.device, self._pack_pages)
        weights.fill(values)
        return PlacedPack(pack_id, weights, pages, pack.manifest.architecture.window)

    def _named_fusion(self) -> sdk.Fusion:
        """Find the fusion that the settings name; raises ConfigError where nobody offers it."""
        offered = {one.name: one for one in BUILTIN} | (self.hooks.fusions() if self.hooks else {})
        name = self.config.fusion
        if name not in offered:
            raise ConfigError(f"fusion is {name!r}, which is not there{nearest(name, offered)}; use {_either(offered)}")
        return offered[name]

    def _keys(self) -> dict[str, Routing]:
        """Read the packs' routing keys; a pack whose keys cannot be read is refused and stops no other."""
        architecture = self.lineup.router.manifest.architecture
        assert isinstance(architecture, RouterArchitecture)
        keys, refused = {}, {}
        for one in self.lineup.routable:
            try:
                if one.pack.routing.exists():
                    keys[one.id] = read_routing(one.pack.routing, architecture.key_size)
            except WeightsError as error:
                if one.id == self.lineup.general_chat.id:
                    raise
                refused[one.id] = str(error)
        routable = tuple(one for one in self.lineup.routable if one.id not in refused)
        self.lineup = replace(self.lineup, routable=routable, refused={**self.lineup.refused, **refused})
        return keys


def _either(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last


def target_of(device: str) -> Target:
    """Return what code for `device` ("cpu" or "cuda") is generated for."""
    return cuda_target() if device == "cuda" else cpu_target()


def architectures(lineup: Lineup) -> list[Architecture]:
    """List the distinct architectures of a line-up: what has to be compiled."""
    packs = [lineup.base, lineup.router, *lineup.routable]
    return list({architecture_key(one.manifest.architecture): one.manifest.architecture for one in packs}.values())
