"""Builds and wires a running model: what is installed, compiled, planned, loaded, in that order.

Nothing is allocated before the budget admits it. The one place that knows every floor.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from modularbase_core.config import EngineConfig
from modularbase_core.context.hot import HotPages, bytes_per_page, make_pages
from modularbase_core.context.page import PageTable
from modularbase_core.device.artefact import Build, ensure_artefacts
from modularbase_core.device.budget import BudgetPlan, mebibytes, plan
from modularbase_core.device.executable import Device, Executable
from modularbase_core.device.layouts import PlacedWeights, planned_bytes
from modularbase_core.device.metadata import ArtefactMeta, InputMeta, read_meta
from modularbase_core.device.target import Target, cpu_target, cuda_target
from modularbase_core.device.weights import Routing, read_routing, read_weights
from modularbase_core.engine.request import Request
from modularbase_core.engine.scheduler import Engine
from modularbase_core.errors import BudgetError, ConfigError, InputError, WeightsError
from modularbase_core.packs.catalog import Catalog, InstalledPack, discover
from modularbase_core.packs.resolve import Lineup, line_up
from modularbase_core.packs.slots import Slots
from modularbase_core.sdk.architecture import (
    PAGE_TOKENS,
    Architecture,
    BaseArchitecture,
    PackArchitecture,
    RouterArchitecture,
    architecture_key,
)
from modularbase_core.text.template import Message, Rendered, render, render_turn
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.decode import Decoding
from modularbase_core.turn.experts import PlacedPack
from modularbase_core.turn.fuse import Fusion
from modularbase_core.turn.route import Routes
from modularbase_core.turn.rows import ROW_BYTES, RowBuffers
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Event, Routed
from modularbase_core.turn.understand import Understanding

Progress = Callable[[str, int, int], None]

MAX_RUNNING = 8
"""Sequences decoded in one call; a pack has pages for as many."""
PREFILL_ROWS = 256


@dataclass(slots=True)
class Conversation:
    """A running conversation: its sequence in the caches and the messages that are in it."""

    sequence: Sequence
    messages: list[Message]


class Host:
    """A model ready to answer; make one with `build`, close it when done."""

    def __init__(self, parts: Parts, engine: Engine, tokenizer: Tokenizer) -> None:
        self._parts = parts
        self.engine = engine
        self.tokenizer = tokenizer
        self._conversation: Conversation | None = None
        self._answering: Generator[Event, None, None] | None = None

    @property
    def catalog(self) -> Catalog:
        """What is installed."""
        return self._parts.catalog

    @property
    def lineup(self) -> Lineup:
        """The packs that run together, and why others do not."""
        return self._parts.lineup

    @property
    def budget(self) -> BudgetPlan:
        """How the memory is divided."""
        return self._parts.budget

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the answer that is under way, if any, and forget the conversation."""
        self._cut_short()
        if self._conversation is not None:
            self.engine.release(self._conversation.sequence)
            self._conversation = None

    def sequence(self) -> Sequence:
        """Begin an empty sequence."""
        return Sequence(PageTable(self._parts.base.window))

    def chat(
        self, messages: Sequence_[Message], sampling: SamplingConfig, *, packs: Sequence_[str] | None = None
    ) -> Iterator[Event]:
        """Answer the last message; what an earlier call already holds of the conversation is not computed again.

        packs: ids or aliases to use instead of the router's choice. Raises InputError, PackError, BudgetError.
        """
        for message in messages:
            size = len(message.content.encode(errors="surrogatepass"))
            if size > self._parts.config.max_prompt_bytes:
                raise InputError(
                    f"the {message.role} message has {size} bytes but {self._parts.config.max_prompt_bytes} are "
                    "taken; shorten it or raise max_prompt_bytes"
                )
        chosen = self._pack_ids(packs or ())
        self._cut_short()
        conversation, rendered = self._continue(list(messages))
        request = Request(
            sequence=conversation.sequence,
            token_ids=rendered.token_ids,
            question=rendered.question,
            sampling=sampling,
            packs=chosen,
        )
        self._answering = self._answer(conversation, messages, request)
        return self._answering

    def _cut_short(self) -> None:
        """End an answer whose iterator was left open: one conversation, one answer at a time."""
        if self._answering is not None:
            self._answering.close()
            self._answering = None

    def _answer(
        self, conversation: Conversation, messages: Sequence_[Message], request: Request
    ) -> Generator[Event, None, None]:
        said: list[str] = []
        begun = False
        try:
            for event in self.engine.stream(request):
                begun = True
                if not isinstance(event, Routed):
                    said.append(event.text)
                yield event
        finally:
            if begun:  # else the turn left no trace
                conversation.messages = [*messages, Message("assistant", "".join(said))]

    def _continue(self, messages: list[Message]) -> tuple[Conversation, Rendered]:
        """Find the conversation that `messages` continues by one user message, or begin one.

        A history that no longer fits is begun from a later turn: its oldest ones are out of sight anyway.
        """
        running = self._conversation
        if running is not None and running.messages and messages[:-1] == running.messages:
            return running, render_turn(messages[-1], self.tokenizer, answer_open=True)
        rendered = render(messages, self.tokenizer, generate=True)
        oldest = 1 if messages[0].role == "system" else 0
        while len(rendered.token_ids) > self.engine.max_tokens and len(messages) > oldest + 2:
            del messages[oldest : oldest + 2]
            rendered = render(messages, self.tokenizer, generate=True)
        self.close()
        self._conversation = Conversation(self.sequence(), [])
        return self._conversation, rendered

    def _pack_ids(self, words: Sequence_[str]) -> tuple[str, ...]:
        routable = {one.id for one in self.lineup.routable}
        ids = []
        for word in words:
            pack = self.catalog.find(word)
            if pack.id not in routable:
                reason = self.lineup.refused.get(pack.id, f"it is the {pack.manifest.type}, which is always there")
                raise InputError(f"pack {word!r} cannot be asked to answer: {reason}")
            ids.append(pack.id)
        return tuple(ids)


def build(config: EngineConfig, *, progress: Progress | None = None, catalog: Catalog | None = None) -> Host:
    """Find, compile, plan and load everything, and return a model ready to answer.

    progress: called with what is being compiled, how far, of how much; only a first use compiles.
    """
    parts = Parts(config, discover() if catalog is None else catalog, progress)
    return Host(parts, parts.engine(), parts.tokenizer)


class Parts:
    """The floors of one model, from the packs on disk to the engine."""

    def __init__(self, config: EngineConfig, catalog: Catalog, progress: Progress | None) -> None:
        self.config, self.catalog = config, catalog
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
        self.budget, self._pack_pages, self.lineup = _plan(config, self.lineup, metas)
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
        fusion = Fusion(weights.bind("mix"), weights.bind("fuse"), hot, self._buffers)
        fallback = self.lineup.general_chat.id
        routes = Routes(
            self._placed(self.lineup.router).bind("route"), self._keys(), fallback, understanding, self._buffers
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
            self.budget.admit(pack_id, _pack_bytes(executable.meta, self._pack_pages))
        assert isinstance(pack.manifest.architecture, PackArchitecture)
        values = read_weights(pack.pack.weights, pack.manifest.architecture)  # before the old pack is given up
        if old is not None and old.weights.executable is executable:
            weights, pages = old.weights, old.pages
        else:
            if old is not None:
                old.vacate()
            weights = PlacedWeights(executable, self.device)
            pages = make_pages(_pages(executable.meta), self.device, self._pack_pages)
        weights.fill(values)
        return PlacedPack(pack_id, weights, pages, pack.manifest.architecture.window)

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


def target_of(device: str) -> Target:
    """Return what code for `device` ("cpu" or "cuda") is generated for."""
    return cuda_target() if device == "cuda" else cpu_target()


def architectures(lineup: Lineup) -> list[Architecture]:
    """List the distinct architectures of a line-up: what has to be compiled."""
    packs = [lineup.base, lineup.router, *lineup.routable]
    return list({architecture_key(one.manifest.architecture): one.manifest.architecture for one in packs}.values())


def _plan(config: EngineConfig, lineup: Lineup, metas: dict[str, ArtefactMeta]) -> tuple[BudgetPlan, int, Lineup]:
    """Divide the memory; also return the pages of each pack, and the line-up without packs too big for a slot."""
    base_meta = metas[architecture_key(lineup.base.manifest.architecture)]
    assert isinstance(lineup.base.manifest.architecture, BaseArchitecture)
    window_pages = lineup.base.manifest.architecture.window.trained_tokens // PAGE_TOKENS + 1
    if config.hot_tokens < window_pages * PAGE_TOKENS:
        raise ConfigError(
            f"hot_tokens is {config.hot_tokens} but {lineup.base.id} needs {window_pages * PAGE_TOKENS}; raise it"
        )
    pack_pages = MAX_RUNNING * window_pages
    of_pack = {
        one.id: _pack_bytes(metas[architecture_key(one.manifest.architecture)], pack_pages) for one in lineup.routable
    }
    router_meta = metas[architecture_key(lineup.router.manifest.architecture)]
    resident = {
        lineup.base.id: planned_bytes(base_meta),
        lineup.router.id: planned_bytes(router_meta),
        lineup.general_chat.id: of_pack[lineup.general_chat.id],
    }
    # one pack that is too big for this memory must not stop the others: the largest that fits sets the slot
    sizes = sorted({0, *(size for pack, size in of_pack.items() if pack not in resident)}, reverse=True)
    for slot_bytes in sizes:
        try:
            divided = plan(
                config.memory_bytes,
                resident=resident,
                slot_count=config.slots,
                slot_bytes=slot_bytes,
                page_bytes=HotPages.page_bytes(base_meta),
                minimum_pages=window_pages,
                maximum_pages=config.hot_tokens // PAGE_TOKENS,
                workspace_bytes=sum(meta.workspace_bytes for meta in metas.values()) + ROW_BYTES,
            )
            break
        except BudgetError:
            if slot_bytes == 0:
                raise
    refused = {
        pack: f"pack {pack!r} needs {mebibytes(size)} but a slot holds {mebibytes(slot_bytes)}; raise memory_bytes"
        for pack, size in of_pack.items()
        if pack not in resident and size > slot_bytes
    }
    routable = tuple(one for one in lineup.routable if one.id not in refused)
    return divided, pack_pages, replace(lineup, routable=routable, refused={**lineup.refused, **refused})


def _pack_bytes(meta: ArtefactMeta, page_count: int) -> int:
    return planned_bytes(meta) + page_count * bytes_per_page(_pages(meta))


def _pages(meta: ArtefactMeta) -> InputMeta:
    return next(item for item in meta.programs["run"].inputs if item.name == "pages")
