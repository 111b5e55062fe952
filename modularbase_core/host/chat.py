"""A model ready to answer: one conversation at a time, continued where the caches hold it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from types import TracebackType

import pluggy

from modularbase_core.config import EngineConfig
from modularbase_core.device.budget import BudgetPlan
from modularbase_core.engine.request import Request
from modularbase_core.engine.scheduler import Engine
from modularbase_core.errors import InputError
from modularbase_core.host.builtin import hooks_of
from modularbase_core.host.history import shorten
from modularbase_core.host.parts import Parts, Progress
from modularbase_core.packs.catalog import Catalog, discover, plugin_manager, weights_store
from modularbase_core.packs.hooks import Hooks
from modularbase_core.packs.resolve import Lineup
from modularbase_core.text.template import Message, Rendered, render, render_turn
from modularbase_core.text.tokenizer import Tokenizer
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.sequence import Sequence
from modularbase_core.turn.stages import Event, Routed


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
            self.engine.release(self._conversation.sequence)
            self._conversation = None

    def sequence(self) -> Sequence:
        """Begin an empty sequence."""
        return self._parts.sequence()

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

    def _continue(self, messages: list[Message]) -> tuple[Conversation, Rendered]:
        """Find the conversation that `messages` continues by one user message, or begin one.

        A history that no longer fits loses its least important turns.
        """
        running = self._conversation
        if running is not None and running.messages and messages[:-1] == running.messages:
            return running, render_turn(messages[-1], self.tokenizer, answer_open=True)
        rendered = render(messages, self.tokenizer, generate=True)
        if len(rendered.token_ids) > self.engine.max_tokens:
            apart = len(rendered.token_ids) - self._tokens(messages)
            kept = shorten(messages, self._tokens, self.engine.max_tokens - apart, self.hooks.importance)
            rendered = render(kept, self.tokenizer, generate=True)
        self._forget()
        self._conversation = Conversation(self.sequence(), [])
        return self._conversation, rendered

    def _tokens(self, messages: Sequence_[Message]) -> int:
        """Count the tokens of messages, each with its role and its end."""
        return sum(len(self.tokenizer.encode(message.content)) + 2 for message in messages)

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
