"""A model ready to answer: one conversation at a time, continued where the caches hold it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from itertools import chain
from types import TracebackType

import pluggy

from modularbase_core.config import EngineConfig
from modularbase_core.device.budget import BudgetPlan
from modularbase_core.engine.request import Request
from modularbase_core.engine.scheduler import Engine
from modularbase_core.errors import InputError
from modularbase_core.host.builtin import hooks_of
from modularbase_core.host.conversations import messages_of
from modularbase_core.host.memory_report import MemoryReport, recalled_pages
from modularbase_core.host.parts import Parts, Progress
from modularbase_core.packs.catalog import Catalog, discover, plugin_manager, weights_store
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.resolve import Lineup
from modularbase_core.text.template import Message, Rendered, render, render_turn
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.sample import PENALISED_TOKENS, SamplingConfig
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Event, Routed

READ = "OK."
"""What is said to a text that was read, as in the recall tasks that the base was trained on."""


@dataclass(slots=True)
class Conversation:
    """A running conversation: its sequence in the caches and the messages that are in it.

    session: its name, empty where it is not kept. first: the token that its last turn began with.
    """

    sequence: Sequence
    messages: list[Message]
    session: str = ""
    first: int = 0


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
    def hooks(self) -> Hooks:
        """The plugins' hooks and our own."""
        return self._parts.hooks

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
        """End the answer that is under way, if any, forget the conversation, and end what runs in the background."""
        self._forget()
        self.engine.close()

    def _forget(self) -> None:
        self._cut_short()
        if self._conversation is not None:
            self._checkpoint(self._conversation)
            self.engine.release(self._conversation.sequence)
            self._conversation = None

    def _checkpoint(self, conversation: Conversation) -> None:
        """Keep all of a session, so that it can be taken up from here."""
        tiers = conversation.sequence.tiers
        if conversation.session and tiers is not None:
            tiers.checkpoint(conversation.sequence.table, conversation.sequence.pending)

    def resume(self, name: str) -> list[Message]:
        """Take up the session `name`, or begin it; return what has been said in it.

        Nothing is computed again. Raises InputError for a name that cannot be one, SessionError where it is in use
        elsewhere, damaged as a whole or was held with another base.
        """
        path = self._parts.conversations.path(name)
        self._forget()
        sequence = self._parts.sequence(path)
        assert sequence.tiers is not None
        try:
            ids, pending = sequence.tiers.restore(sequence.table)
        except BaseException:
            self.engine.release(sequence)
            raise
        sequence.fused, sequence.pending = sequence.table.tokens, pending
        token_ids = [*ids.tolist(), *pending]
        sequence.seen.extend(one for one in token_ids[-PENALISED_TOKENS:] if self.tokenizer.token_bytes(one))
        self._conversation = Conversation(sequence, messages_of(token_ids, self.tokenizer), name)
        return list(self._conversation.messages)

    def read(
        self,
        text: Iterable[str],
        named: str,
        progress: Callable[[int], None] | None = None,
        *,
        system: Message | None = None,
    ) -> list[Message]:
        """Take a text in as something that the user showed; return the messages so far.

        text: in pieces, so that a long one is never whole in memory. named: what stands for it among the messages.
        progress: called with the tokens that are through. system: goes first where the conversation begins with this.
        Where it ends early, the conversation goes on from there.
        """
        self._cut_short()
        if self._conversation is None:
            self._conversation = Conversation(self.sequence(), [])
        conversation = self._conversation
        sequence, controls = conversation.sequence, self.tokenizer.controls
        opening = [*self._closing(sequence), *controls.opening["user"]]
        if not sequence.table.tokens:
            conversation.messages = [] if system is None else [system]
            before = controls.system if system is None else self._spoken(system)
            opening = [*controls.begin, *before, *controls.opening["user"]]
        closing = [*controls.closing["user"], *controls.opening["assistant"], *self.tokenizer.encode(READ)]
        assert sequence.tiers is not None
        sequence.tiers.heard.typed, through = False, 0
        try:
            for token_ids in chain([opening], map(self.tokenizer.encode, text), [closing]):
                for done in self.engine.read(sequence, token_ids) if token_ids else ():
                    if progress is not None:
                        progress(through + done)
                through += len(token_ids)
        finally:
            sequence.tiers.heard.typed = True
            said = (Message("user", f"[{named}]"), Message("assistant", READ))
            conversation.messages = [*conversation.messages, *said]
            self._checkpoint(conversation)
        return list(conversation.messages)

    def _spoken(self, message: Message) -> tuple[int, ...]:
        """Return a message with what stands around it."""
        around = self.tokenizer.controls
        content = self.tokenizer.encode(message.content)
        return (*around.opening[message.role], *content, *around.closing[message.role])

    def memory(self) -> MemoryReport | None:
        """Tell what the running conversation holds, hot and cold, and what came back; None before it begins."""
        running = self._conversation
        if running is None or running.sequence.tiers is None:
            return None
        tiers = running.sequence.tiers
        sizes = tiers.measure(running.sequence.table)
        recalled = [(one.token, one.by) for one in tiers.recalled]
        return MemoryReport(
            tokens=sizes.tokens + len(running.sequence.pending),
            hot_tokens=sizes.hot_tokens,
            cold_tokens=sizes.cold_tokens,
            bytes_on_disk=sizes.cold_bytes,
            limit_bytes=sizes.limit_bytes,
            index_bytes=sizes.index_bytes,
            shared_tokens=running.sequence.beginning.shared,
            recalled=recalled_pages(tiers.entries(), recalled, self.tokenizer),
        )

    def pin(self) -> None:
        """Keep the last turn exactly, whatever else must go; raises InputError where nothing was said yet."""
        running = self._conversation
        if running is None or running.sequence.tiers is None or not running.messages:
            raise InputError("nothing has been said yet; there is nothing to pin")
        running.sequence.tiers.pin(running.sequence.table, running.first)

    def _closing(self, sequence: Sequence) -> tuple[int, ...]:
        """Return what ends the message that a sequence stands in."""
        controls = self.tokenizer.controls
        role = sequence.tiers.heard.role if sequence.tiers is not None else "assistant"
        if sequence.pending:
            role = "assistant"
        if role == "user":  # it was cut short while it was read
            return (*controls.closing["user"], *controls.opening["assistant"], *controls.closing["assistant"])
        return controls.closing.get(role, ())

    def sequence(self) -> Sequence:
        """Begin an empty sequence."""
        return self._parts.sequence()

    def chat(
        self, messages: Sequence_[Message], sampling: SamplingConfig, *, packs: Sequence_[str] | None = None
    ) -> Iterator[Event]:
        """Answer the last message; what an earlier call already holds of the conversation is not computed again.

        packs: ids or aliases to use instead of the router's choice. Raises InputError, PackError, BudgetError.
        """
        running = self._conversation
        held = running.messages if running is not None and messages[: len(running.messages)] == running.messages else ()
        for message in messages[len(held) :]:
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
            message=messages[-1].content,
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
                self._checkpoint(conversation)

    def _continue(self, messages: list[Message]) -> tuple[Conversation, Rendered]:
        """Find the conversation that `messages` continues by one user message, or begin one."""
        running = self._conversation
        if running is not None and messages[:-1] == running.messages and (running.messages or running.session):
            if running.sequence.table.tokens:
                rendered = render_turn(messages[-1], self.tokenizer, closing=self._closing(running.sequence))
            else:
                rendered = render(messages, self.tokenizer, generate=True)
        else:
            if running is not None and running.session:
                raise InputError(
                    f"these messages do not continue session {running.session!r}; leave it first, or use another name"
                )
            rendered = render(messages, self.tokenizer, generate=True)
            self._forget()
            running = self._conversation = Conversation(self.sequence(), [])
        running.first = running.sequence.table.tokens
        return running, rendered

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


def build(
    config: EngineConfig,
    *,
    progress: Progress | None = None,
    catalog: Catalog | None = None,
    manager: pluggy.PluginManager | None = None,
) -> Host:
    """Find, compile, plan and load everything, and return a model ready to answer.

    progress: called with what is being compiled, how far, of how much; only a first use compiles. catalog: the packs,
    by default those that are installed. manager: the plugins, registered; by default those that are installed, or
    none but our own where a catalog is given.
    """
    manager = plugin_manager() if manager is None else manager
    if catalog is None:
        catalog = discover(manager, store=weights_store(config.cache_dir))
    parts = Parts(config, catalog, progress, hooks_of(catalog, manager))
    return Host(parts, parts.engine(), parts.tokenizer)
