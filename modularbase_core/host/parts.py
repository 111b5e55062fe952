"""The floors of a running model: what is installed, compiled, planned, loaded, in that order.

Nothing is allocated before the budget admits it. The one place that knows every floor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from modularbase_core.config import EngineConfig
from modularbase_core.context.beginning import Beginnings
from modularbase_core.context.hot import HotPages
from modularbase_core.context.page import PageTable
from modularbase_core.context.prefix import PrefixCache
from modularbase_core.context.tier_settings import TierSettings
from modularbase_core.context.tiers import Tiers
from modularbase_core.device.artefact import ensure_artefacts
from modularbase_core.device.executable import Device, Executable
from modularbase_core.device.metadata import read_meta
from modularbase_core.device.target import Target, cpu_target, cuda_target
from modularbase_core.engine.scheduler import Engine
from modularbase_core.errors import BudgetError, ConfigError, PackError, WeightsError, nearest
from modularbase_core.host.builds import plan_builds
from modularbase_core.host.builtin import hooks_of
from modularbase_core.host.conversations import Conversations, shapes_of
from modularbase_core.host.keys import background_of, read_keys
from modularbase_core.host.memory import MAX_RUNNING, divide, divide_for_routing
from modularbase_core.host.places import Places
from modularbase_core.packs.catalog import Catalog, InstalledPack
from modularbase_core.packs.history import History
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.policy import eviction
from modularbase_core.packs.prefetch import Prefetcher
from modularbase_core.packs.resolve import line_up
from modularbase_core.packs.slots import Slots
from modularbase_core.sdk import fusion as sdk
from modularbase_core.sdk.architecture import (
    PAGE_TOKENS,
    BaseArchitecture,
    architecture_key,
)
from modularbase_core.sdk.events import PackEvicted, PackLoaded
from modularbase_core.sdk.manifest import WEIGHTS_FILE
from modularbase_core.sdk.template import read_template
from modularbase_core.text.template import OURS, Message, render
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.decode import Decoding
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.fuse import Fusion
from modularbase_core.turn.fusions import Shares
from modularbase_core.turn.queries import Queries
from modularbase_core.turn.remember import Remembering
from modularbase_core.turn.route import Routes
from modularbase_core.turn.rows import LIST_MULTIPLE, RowBuffers
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.sharing import Sharing, digest
from modularbase_core.turn.understand import Understanding

Progress = Callable[[str, int, int], None]

PREFILL_ROWS = 256
HISTORY_FILE = "pack-history.json"


class Parts:
    """The floors of one model, from the packs on disk to the engine; with routing_only base and router alone."""

    def __init__(
        self,
        config: EngineConfig,
        catalog: Catalog,
        progress: Progress | None,
        hooks: Hooks | None = None,
        *,
        routing_only: bool = False,
    ) -> None:
        self.config, self.catalog = config, catalog
        self.hooks = hooks_of(catalog) if hooks is None else hooks
        self._fusion = self._named_fusion()
        self.lineup = line_up(catalog, config.base)
        architecture = self.lineup.base.manifest.network
        assert isinstance(architecture, BaseArchitecture)
        self.base = architecture
        pack = self.lineup.base.pack
        template = read_template(pack.template) if pack.template.exists() else OURS
        self.tokenizer = Tokenizer.load(pack.tokenizer, template)
        if self.tokenizer.vocabulary_size > self.base.vocabulary_size:
            raise WeightsError(
                f"the tokenizer of {self.lineup.base.id!r} has {self.tokenizer.vocabulary_size} tokens but its "
                f"embedding {self.base.vocabulary_size}; install the base again"
            )
        directories = self._compile(progress, routing_only)
        metas = {key: read_meta(path) for key, path in directories.items()}
        if routing_only:
            self.budget, self._pack_pages = divide_for_routing(config, self.lineup, metas), 0
        else:
            self.budget, self._pack_pages, self.lineup = divide(config, self.lineup, metas)
        self.device = Device(config.device, threads=config.threads or None, graphs=config.cuda_graphs)
        self.executables = {key: Executable.load(path, self.device) for key, path in directories.items()}
        # on a GPU page lists have one width, so that a growing conversation makes the same call again
        widest = self.base.window.trained_tokens // PAGE_TOKENS
        self._buffers = RowBuffers(self.device, LIST_MULTIPLE if config.device == "cpu" else widest)
        self.page_shapes = shapes_of(self.base)
        self.conversations = Conversations(config, self.page_shapes, self.hooks.cold_stores())
        self._places = Places(
            config, self.lineup, self.budget, self._pack_pages, self.device, self.executables, progress
        )

    def engine(self, *, prefill_rows: int = PREFILL_ROWS) -> Engine:
        """Load the residents and wire the stages. prefill_rows: most tokens of a prompt in one call."""
        understanding, routes = self._routing(prefill_rows)
        hot, weights = understanding.hot, self._base_weights
        mix, compare, fuse = (weights.bind(program) for program in ("mix", "compare", "fuse"))
        shares = Shares(self._fusion, self.config.contradiction)
        fusion = Fusion(mix, compare, fuse, hot, self._buffers, shares)
        remembering = Remembering(weights.bind("probe"), hot, self._buffers, self.base, prefill_rows)
        fallback = self.lineup.general_chat.id
        slots = self._slots(fallback)
        decoding = Decoding(understanding, fusion, remembering, self._sharing(shares), hot, self._buffers, prefill_rows)
        return Engine(
            understanding,
            routes,
            slots,
            decoding,
            self.tokenizer,
            fallback=fallback,
            max_running=MAX_RUNNING,
            max_tokens=(self.budget.page_count - 1) * PAGE_TOKENS,
            draft_tokens=self.config.draft_tokens,
            hooks=self.hooks,
            prefetcher=self._prefetcher(slots),
        )

    def _sharing(self, shares: Shares) -> Sharing:
        """Let conversations that begin alike share pages, as long as base, kernels and packs are the same."""
        base, pool = self.lineup.base, self._hot.pool
        regime = digest(self._described(base), self._executable(base).meta.key, asdict(self.base.window))
        cache = PrefixCache(pool, min(self.config.prefix_tokens // PAGE_TOKENS, pool.page_count))
        beginnings = Beginnings(cache, pool, self._hot.copy_understood, regime)
        packs = {one.id: f"{self._described(one)} {self._executable(one).meta.key}" for one in self.lineup.routable}
        return Sharing(beginnings, packs, shares)

    def _prefetcher(self, slots: Slots[PlacedPack]) -> Prefetcher | None:
        if not self.config.prefetch:
            return None
        prefetcher = Prefetcher(slots, History(self.config.cache_dir / HISTORY_FILE))
        prefetcher.background(self._places.warm)
        return prefetcher

    def _slots(self, resident: str) -> Slots[PlacedPack]:
        """Make the slots, with the resident pack and the pins in place; raises ConfigError for pins that cannot be."""
        slots: Slots[PlacedPack] = Slots(
            self._places.prepare,
            self.config.slots,
            policy=eviction(self.config.eviction),
            on_loaded=lambda *loaded: self.hooks.pack_loaded(PackLoaded(*loaded)),
            on_evicted=lambda *evicted: self.hooks.pack_evicted(PackEvicted(*evicted)),
        )
        slots.add_resident(resident)
        for word in self.config.pins:
            try:
                slots.pin(self.catalog.find(word).id)
            except (PackError, BudgetError) as error:
                raise ConfigError(f"pins names {word!r}, but {error}") from error
        return slots

    def _routing(self, prefill_rows: int) -> tuple[Understanding, Routes]:
        """Load base and router; a pack whose routing keys cannot be used leaves the line-up."""
        executable = self._executable(self.lineup.base)
        self._base_weights = weights = self._places.resident(self.lineup.base)
        hot = HotPages(executable.meta, self.device, self.budget.page_count)
        understanding = Understanding(
            weights.bind("understand"), weights.bind("recall_hidden"), hot, self._buffers, prefill_rows
        )
        self._hot = hot
        route = self._places.resident(self.lineup.router).bind("route")
        queries = Queries(route, understanding, self._buffers, self._as_first_message, self._forgetful)
        keys = read_keys(self.lineup, queries, self.config.cache_dir)
        self.lineup = self.lineup.without(keys.refused)
        routes = Routes(
            queries,
            {one.id: keys.routing[one.id] for one in self.lineup.routable if one.id in keys.routing},
            background_of(self.lineup).centres,
            self.lineup.general_chat.id,
            packs=[one.id for one in self.lineup.routable],
            hooks=self.hooks,
            threshold=self.config.threshold,
            packs_per_turn=self.config.packs_per_turn,
        )
        return understanding, routes

    def routes(self) -> Routes:
        """Load base and router alone, to route messages."""
        return self._routing(PREFILL_ROWS)[1]

    def sequence(self, session: Path | None = None) -> Sequence:
        """Begin an empty sequence with tiers, whose store is `session` or, without one, a folder of this process."""
        opener = partial(self.conversations.open, session)
        tiers = Tiers(self._hot, self._tier_settings(), opener, journal=session is not None)
        return Sequence(PageTable(self.base.window), tiers=tiers)

    def _forgetful(self) -> Sequence:
        return Sequence(PageTable(self.base.window))

    def _tier_settings(self) -> TierSettings:
        return TierSettings(
            shapes=self.page_shapes,
            window=self.base.window,
            vocabulary_size=self.base.vocabulary_size,
            controls=self.tokenizer.controls,
            spell=self.tokenizer.decode,
            importance=self.hooks.importance,
            form=self.config.cold,
            base=self._described(self.lineup.base),
        )

    @staticmethod
    def _described(pack: InstalledPack) -> str:
        """Say, as JSON, which weights a pack has."""
        manifest = pack.manifest
        described = {"id": manifest.id, "version": manifest.version, "digest": manifest.files.get(WEIGHTS_FILE, "")}
        return json.dumps(described)

    def _as_first_message(self, text: str) -> tuple[list[int], tuple[int, int]]:
        rendered = render([Message("user", text)], self.tokenizer, generate=True)
        return rendered.token_ids, rendered.question

    def _compile(self, progress: Progress | None, routing_only: bool) -> dict[str, Path]:
        target = target_of(self.config.device)
        packs = [self.lineup.base, self.lineup.router, *(() if routing_only else self.lineup.routable)]
        builds = plan_builds(packs, target, self.config.precisions)
        paths = ensure_artefacts(builds, self.config.cache_dir, progress)
        return {architecture_key(build.architecture): path for build, path in zip(builds, paths, strict=True)}

    def _executable(self, pack: InstalledPack) -> Executable:
        return self.executables[architecture_key(pack.manifest.network)]

    def _named_fusion(self) -> sdk.Fusion:
        """Find the fusion that the settings name; raises ConfigError where nobody offers it."""
        offered = self.hooks.fusions()
        name = self.config.fusion
        if name not in offered:
            raise ConfigError(f"fusion is {name!r}, which is not there{nearest(name, offered)}; use {_either(offered)}")
        return offered[name]


def _either(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last


def target_of(device: str) -> Target:
    """Return what code for `device` ("cpu" or "cuda") is generated for."""
    return cuda_target() if device == "cuda" else cpu_target()
