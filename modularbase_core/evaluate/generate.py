"""Answers of the running model to many questions, as many at once as it runs together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modularbase_core.engine.request import Request, Running
from modularbase_core.errors import BudgetError, InputError
from modularbase_core.host import Host
from modularbase_core.host.memory import MAX_RUNNING
from modularbase_core.text.template import Message, render
from modularbase_core.turn.sample import SamplingConfig
from modularbase_core.turn.stages import Finished, Routed, Token

Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question. packs: ids of those that answer, none to let the router choose."""

    messages: tuple[Message, ...]
    packs: tuple[str, ...]
    sampling: SamplingConfig


@dataclass(slots=True)
class Answer:
    """An answer. packs: who gave it; reason: stop or length, or what kept the question from being answered."""

    text: str = ""
    packs: tuple[str, ...] = ()
    reason: str = ""
    tokens: int = 0
    notes: list[str] = field(default_factory=list)


def answers(host: Host, asked: Sequence[Asked], done: Done | None = None) -> list[Answer]:
    """Answer questions, each as the first of a conversation of its own, and return the answers in order.

    A question that does not fit leaves an empty answer with the reason. What is under way when this ends early is
    taken out of the engine.
    """
    out = [Answer() for _ in asked]
    waiting = deque(range(len(asked)))
    running: dict[int, Running] = {}
    together = MAX_RUNNING
    try:
        while waiting or running:
            while waiting and len(running) < together:
                number = waiting.popleft()
                try:
                    running[number] = host.engine.submit(_request(host, asked[number]))
                except InputError as error:
                    out[number].reason = str(error)
            host.engine.step()
            ended = [number for number, one in running.items() if one.finished]
            full = any(isinstance(running[number].error, BudgetError) for number in ended)
            for number in ended:
                one = running.pop(number)
                host.engine.release(one.request.sequence)
                if isinstance(one.error, BudgetError) and together > 1:
                    waiting.append(number)  # fewer at once have more pages each
                    continue
                out[number] = _answer(one)
                if done is not None:
                    done(1)
            together = max(1, together // 2) if full else together
    finally:
        for one in running.values():
            host.engine.release(one.request.sequence)
    return out


def _request(host: Host, asked: Asked) -> Request:
    rendered = render(asked.messages, host.tokenizer, generate=True)
    return Request(
        sequence=host.sequence(),
        token_ids=rendered.token_ids,
        question=rendered.question,
        sampling=asked.sampling,
        packs=asked.packs,
        message=asked.messages[-1].content,
    )


def _answer(one: Running) -> Answer:
    """Read what a finished request said; raises what ended it unless that is its own size."""
    if isinstance(one.error, BudgetError):
        return Answer(reason=str(one.error))
    if one.error is not None:
        raise one.error
    out = Answer()
    for event in one.events:
        if isinstance(event, Routed):
            out.packs = tuple(pack.id for pack in event.packs)
            out.notes += event.notes
        elif isinstance(event, Token):
            out.text += event.text
            out.tokens += 1
        elif isinstance(event, Finished):
            out.text += event.text
            out.reason = event.reason
            out.notes += event.notes
    return out
