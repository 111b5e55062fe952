"""Weights on their way to the device: residents into memory of their own, on-demand packs into a slot's.

Decides what memory a pack takes; which slot it gets is `packs.slots`'. Nothing is evicted for a pack that turns out
to be unfit: it is checked and opened before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from modularbase_core.config import EngineConfig
from modularbase_core.context.hot import pages_form
from modularbase_core.device.budget import BudgetPlan
from modularbase_core.device.executable import Device, Executable
from modularbase_core.device.layouts import PlacedWeights, planned_bytes
from modularbase_core.device.region import Bytes, Region
from modularbase_core.device.repacked import RepackedWeights, repacked_folder
from modularbase_core.errors import PackError
from modularbase_core.host.memory import pack_bytes, pages_of
from modularbase_core.packs.catalog import InstalledPack
from modularbase_core.packs.resolve import Lineup
from modularbase_core.packs.slots import Prepared
from modularbase_core.sdk.architecture import PackArchitecture, architecture_key
from modularbase_core.sdk.manifest import WEIGHTS_FILE
from modularbase_core.turn.experts import PlacedPack

Progress = Callable[[str, int, int], None]

LONG_BYTES: Final = 64 << 20
"""Weights beyond this take long enough to repack that it is shown."""


class Places:
    """The device memory of a line-up's weights. executables: by architecture; pack_pages: KV pages of each pack."""

    def __init__(
        self,
        config: EngineConfig,
        lineup: Lineup,
        budget: BudgetPlan,
        pack_pages: int,
        device: Device,
        executables: Mapping[str, Executable],
        progress: Progress | None = None,
    ) -> None:
        self._progress = progress
        self._lineup, self._budget, self._pack_pages = lineup, budget, pack_pages
        self._device, self._host_cache_bytes = device, config.host_cache_bytes
        packs = (lineup.base, lineup.router, *lineup.routable)
        # by pack, as a swap has no time to name architectures; a pack whose network is not compiled is not loaded
        keys = {one.id: architecture_key(one.manifest.network) for one in packs}
        self._executables = {pack_id: executables[key] for pack_id, key in keys.items() if key in executables}
        self._repacked = RepackedWeights(repacked_folder(config.cache_dir), config.host_cache_bytes)
        self._packs = {one.id: one for one in lineup.routable}
        self._regions: dict[int | None, Region] = {}
        self._standing: dict[int | None, PlacedPack] = {}

    def resident(self, pack: InstalledPack) -> PlacedWeights:
        """Load the base's or the router's weights for good; raises WeightsError."""
        body = self._open_shown(pack)  # checked before anything is made
        weights = PlacedWeights(self._executable(pack), self._device)
        weights.fill(body)
        return weights

    def prepare(self, pack_id: str) -> Prepared[PlacedPack]:
        """Check and open a pack for `Slots`; raises PackError, BudgetError or WeightsError when it is unfit."""
        if pack_id not in self._packs:
            raise PackError(f"pack {pack_id!r} does not run with this base; `modularbase pack list` shows what does")
        pack = self._packs[pack_id]
        size_bytes = pack_bytes(self._executable(pack).meta, self._pack_pages)
        if pack_id == self._lineup.general_chat.id:  # a resident, planned by itself, takes no slot
            body = self._open_shown(pack)
        else:
            self._budget.admit(pack_id, size_bytes)
            body = self._open(pack)
        return Prepared(size_bytes, partial(self._place, pack, body, size_bytes))

    def warm(self) -> None:
        """Have what was repacked before read ahead from disk, as much of it as is kept mapped."""
        room = self._host_cache_bytes - self._repacked.held_bytes
        for pack in self._packs.values():
            meta, digest = self._executable(pack).meta, pack.manifest.files.get(WEIGHTS_FILE)
            room -= planned_bytes(meta)
            if room >= 0 and self._repacked.is_ready(pack.pack.weights, digest, meta):
                self._open(pack)

    def _place(self, pack: InstalledPack, body: Bytes, size_bytes: int, number: int | None) -> PlacedPack:
        """Copy a pack into the slot of that number; None is the resident's own place."""
        executable = self._executable(pack)
        assert isinstance(executable.meta.architecture, PackArchitecture)
        if number in self._standing:
            self._standing.pop(number).vacate()
        if number not in self._regions:
            self._regions[number] = Region(self._device, size_bytes if number is None else self._budget.slot_bytes)
        pages = pages_form(pages_of(executable.meta), self._pack_pages)
        weights = PlacedWeights(executable, self._regions[number], [pages])
        weights.fill(body)
        placed = PlacedPack(pack.id, weights, weights.beside[0], executable.meta.architecture.window)
        self._standing[number] = placed
        return placed

    def _open_shown(self, pack: InstalledPack) -> Bytes:
        """Open a resident's weights, which are asked for once; tell of it where repacking them takes seconds."""
        meta, digest = self._executable(pack).meta, pack.manifest.files.get(WEIGHTS_FILE)
        long = planned_bytes(meta) > LONG_BYTES and not self._repacked.is_ready(pack.pack.weights, digest, meta)
        tell = self._progress if long and self._progress is not None else lambda *_: None
        tell(f"repacking the weights of {pack.id}", 0, 1)
        body = self._open(pack, keep=False)
        tell(f"repacking the weights of {pack.id}", 1, 1)
        return body

    def _open(self, pack: InstalledPack, *, keep: bool = True) -> Bytes:
        meta, digest = self._executable(pack).meta, pack.manifest.files.get(WEIGHTS_FILE)
        return self._repacked.open(pack.pack.weights, digest, meta, keep=keep)

    def _executable(self, pack: InstalledPack) -> Executable:
        return self._executables[pack.id]
