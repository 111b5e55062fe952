"""A conversation in the terminal: streams answers, shows who gave them, keeps the history."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from modularbase_core.cli.memory import tell_memory
from modularbase_core.cli.progress import byte_bar
from modularbase_core.cli.question import check_question
from modularbase_core.cli.reading import check_text, pieces
from modularbase_core.cli.report import print_json
from modularbase_core.errors import InputError, ModularBaseError, nearest
from modularbase_core.text.template import Message
from modularbase_core.turn.stages import Event, Finished, Routed, RoutedPack, Token

if TYPE_CHECKING:
    from modularbase_core.host import Host
    from modularbase_core.text.tokenizer import Tokenizer
    from modularbase_core.turn.sample import SamplingConfig

_HELP: Final = """\
/packs   the packs that can answer, their scores for the last message, why they did
/memory  what is held of the conversation and where, and what came back for the last answer
/pin     keep the last question and its answer exactly, whatever else must go
/new     forget the conversation
/quit    leave (so does Ctrl-D)
Ctrl-C ends an answer."""


@dataclass(slots=True)
class Answer:
    """What has come of an answer so far."""

    text: str = ""
    routed: Routed | None = None
    finished: Finished | None = None
    tokens: list[Token] = field(default_factory=list)

    def add(self, event: Event) -> str:
        """Take an event in; return the text that became certain with it."""
        if isinstance(event, Routed):
            self.routed = event
            return ""
        if isinstance(event, Finished):
            self.finished = event
        else:
            self.tokens.append(event)
        self.text += event.text
        return event.text

    # Any: plain JSON values
    def to_dict(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
        """Describe the answer as plain JSON values, with logprobs where there is a tokenizer to spell them."""
        plain: dict[str, Any] = {"text": self.text}
        if self.routed:
            plain["packs"] = [asdict(pack) for pack in self.routed.packs]
            plain["scores"] = self.routed.scores
            plain["notes"] = list(self.routed.notes)
        if self.finished:
            plain["notes"] = [*plain.get("notes", ()), *self.finished.notes]
            plain["finish_reason"] = self.finished.reason
            plain["stop"] = self.finished.stop
            plain["prompt_tokens"] = self.finished.prompt_tokens
            plain["shared_tokens"] = self.finished.shared_tokens
            plain["generated_tokens"] = self.finished.generated_tokens
            plain["drafted_tokens"] = self.finished.drafted_tokens
            plain["accepted_tokens"] = self.finished.accepted_tokens
        if tokenizer:
            plain["tokens"] = [
                {
                    "text": one.text,
                    "id": one.token_id,
                    "logprob": one.logprob,
                    "top": [{"id": id, "text": _spelt(id, tokenizer), "logprob": value} for id, value in one.top],
                }
                for one in self.tokens
            ]
        return plain


def _spelt(token_id: int, tokenizer: Tokenizer) -> str:
    # an embedding may have rows that no token uses
    return tokenizer.decode([token_id]) if token_id < tokenizer.vocabulary_size else ""


class Conversation:
    """Messages so far, and how the next is answered. packs: ids that answer, None to let the router choose."""

    def __init__(
        self,
        host: Host,
        sampling: SamplingConfig,
        *,
        packs: Sequence[str] | None,
        system: str | None,
        max_prompt_bytes: int,
        as_json: bool,
        quiet: bool,
    ) -> None:
        self._host, self._sampling, self._packs = host, sampling, packs
        self._max_prompt_bytes, self._as_json, self._quiet = max_prompt_bytes, as_json, quiet
        self._opening = [Message("system", system)] if system is not None else []
        self.messages = list(self._opening)
        self._routed: Routed | None = None
        self._session = ""

    def tell_broken(self) -> None:
        """Say which installed packs cannot answer, a line each."""
        if self._quiet:
            return
        reasons = [f"{one.name} of {one.distribution} is broken: {one.reason}" for one in self._host.catalog.broken]
        for reason in (*reasons, *self._host.lineup.refused.values()):
            click.secho(f"note: {' '.join(reason.split())}", dim=True, err=True)

    def resume(self, session: str) -> None:
        """Take up the session of this name, or begin it."""
        self.messages = self._host.resume(session) or self.messages
        sizes = self._host.memory()
        self._session = session
        if self._opening and self.messages[:1] != self._opening:
            self._note([f"session {session!r} has begun without this system message, which is left out"], always=True)
        if not self._quiet and sizes is not None and sizes.tokens:
            click.secho(f"[{session}: {sizes.tokens:,} tokens so far]", dim=True, err=True)

    def read(self, file: Path) -> None:
        """Take a whole text in; with Ctrl-C the part that was read stays."""
        size = check_text(file)
        with byte_bar(quiet=self._quiet) as show:
            text = pieces(file, lambda done: show(f"reading {file.name}", done, size))
            self.messages = self._host.read(text, file.name, system=next(iter(self._opening), None))

    def ask(self, question: str) -> None:
        """Stream the answer to `question`; it joins the history, also when Ctrl-C cut it short.

        Raises what the host raises (the question then leaves no trace), and KeyboardInterrupt.
        """
        asked = [*self.messages, Message("user", question)]
        answer = Answer()
        # a generator, so that closing it frees what the answer holds when it is cut short
        events = cast(Generator[Event, None, None], self._host.chat(asked, self._sampling, packs=self._packs))
        try:
            with closing(events):
                for event in events:
                    self._show(event, answer.add(event))
        except BaseException as error:
            if answer.text and not self._as_json:
                click.echo()  # whatever is said next begins on a line of its own
            if answer.text and isinstance(error, KeyboardInterrupt):
                self.messages = [*asked, Message("assistant", answer.text)]
            raise
        if self._as_json:
            tokenizer = self._host.tokenizer if self._sampling.logprobs is not None else None
            print_json(answer.to_dict(tokenizer), one_line=True)
        else:
            click.echo()
        self._note(answer.finished.notes if answer.finished else ())
        self.messages = [*asked, Message("assistant", answer.text)]

    def talk(self) -> None:
        """Ask again and again until /quit or the end of input."""
        with suppress(ImportError):  # line editing, where Python has it
            import readline  # noqa: F401
        if not self._quiet:
            click.secho("Ask something; /help tells more.", dim=True, err=True)
        told = False
        while True:
            try:
                line = self._read_line()
            except EOFError:
                click.echo(err=True)
                return
            except KeyboardInterrupt:
                click.echo(err=True)  # the line that was begun is given up
                if not told:
                    click.secho("Ctrl-D or /quit leaves", dim=True, err=True)
                    told = True
                continue
            if line.strip() == "/quit":
                return
            if not line.strip():
                continue
            try:
                if line.startswith("/") and " " not in line.strip():
                    self._command(line.strip())
                else:
                    self.ask(check_question(line, "the question", self._max_prompt_bytes))
            except KeyboardInterrupt:
                continue
            except ModularBaseError as error:
                click.echo(f"error: {error}", err=True)

    def _read_line(self) -> str:
        while True:
            try:
                if sys.stdout.isatty() and not self._as_json:
                    return input("> ")  # the only way to line editing; it writes to standard output
                click.echo("> ", nl=False, err=True)
                return input()
            except UnicodeDecodeError as error:
                click.echo(f"error: the line is not UTF-8 (at byte {error.start}); check the terminal", err=True)

    def _command(self, line: str) -> None:
        if line == "/help":
            click.echo(_HELP, err=self._as_json)
        elif line == "/memory":
            self._tell_memory()
        elif line == "/pin":
            self._host.pin()
        elif line == "/new":
            if self._session:
                raise InputError(f"session {self._session!r} is kept; leave it, or `modularbase session delete` it")
            self.messages, self._routed = list(self._opening), None
        elif line == "/packs":
            self._tell_packs()
        else:
            hint = nearest(line, ("/help", "/packs", "/memory", "/pin", "/new", "/quit"))
            raise InputError(f"there is no command {line}{hint}; /help lists them")

    def _tell_memory(self) -> None:
        report = self._host.memory()
        if report is None:
            raise InputError("nothing has been said yet")
        tell_memory(report, as_json=self._as_json)

    def _tell_packs(self) -> None:
        """Show who can answer, with scores for the last message and why those that answered it were chosen."""
        scores = self._routed.scores if self._routed else {}
        reasons = {one.id: one.reason for one in self._routed.packs} if self._routed else {}
        packs = [
            {
                **{key: getattr(one.manifest, key) for key in ("id", "version", "type", "name")},
                "score": scores.get(one.id),
                "reason": reasons.get(one.id),
            }
            for one in self._host.lineup.routable
        ]
        if self._as_json:
            print_json({"packs": packs}, one_line=True)
            return
        packs.sort(key=lambda one: (one["reason"] is None, -(one["score"] or 0.0)))
        rows = [
            (one["id"], one["version"], one["type"], _score(one["score"]), one["reason"] or "", one["name"])
            for one in packs
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())

    def _show(self, event: Event, text: str) -> None:
        if isinstance(event, Routed):
            self._routed = event
            # who named a pack is told that others answer, however quiet it should be
            replaced = not {one.id for one in event.packs}.issuperset(self._packs or ())
            self._note(event.notes, always=replaced)
            if not self._quiet and not self._as_json:
                click.secho(f"[{' + '.join(map(_share, event.packs))}]", dim=True, err=True)
        if text and not self._as_json:
            click.echo(text, nl=False)

    def _note(self, notes: Sequence[str], *, always: bool = False) -> None:
        for note in notes if always or not self._quiet else ():
            click.secho(f"note: {note}", dim=True, err=True)


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _share(pack: RoutedPack) -> str:
    return pack.id if pack.weight >= 0.995 else f"{pack.id} {pack.weight:.0%}"
