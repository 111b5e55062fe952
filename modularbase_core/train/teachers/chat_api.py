"""A teacher behind a URL that speaks OpenAI's /v1/chat/completions: asked at its pace, patiently, and never twice.

Only what is sent and how failures are met is decided here; answers are kept by `answers`.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from tqdm import tqdm

from modularbase_core.errors import TrainingError
from modularbase_core.train.recipe import Teacher
from modularbase_core.train.teachers.answers import Answers, Asked, today

LONGEST_WAIT_SECONDS: Final = 60.0
LARGEST_BYTES: Final = 16 << 20
"""Of a reply."""
_AGAIN: Final = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_SHOWN: Final = 200


class ChatApi:
    """Asks a served model. key: sent as a bearer token, if there is one; sleep: waits so many seconds."""

    def __init__(
        self, settings: Teacher, key: str | None = None, sleep: Callable[[float], object] | None = None
    ) -> None:
        self._settings, self._key = settings, key
        self._stopped = threading.Event()
        self._failure: TrainingError | None = None
        self._sleep = sleep or self._stopped.wait
        self._pace = _Pace(settings.requests_per_minute, self._sleep)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self.host = urlsplit(settings.url).netloc

    def answer(self, every: Sequence[Asked], answers: Answers, *, quiet: bool) -> None:
        """Ask what is not in `answers` yet; each answer is kept as it comes.

        A prompt that the service refuses (400, 422) is kept with an empty answer, unless it is the first of all.
        Raises TrainingError, in one sentence, when the service cannot be asked; what came before is kept.
        """
        missing = [one for one in every if one not in answers]
        bar = tqdm(total=len(every), initial=len(every) - len(missing), unit="answer", disable=quiet, mininterval=5.0)
        self._stopped.clear()
        with bar, ThreadPoolExecutor(self._settings.concurrency) as pool:
            waiting: set[Future[None]] = set()
            self._failure = None
            try:
                for asked in missing:
                    if len(waiting) >= 2 * self._settings.concurrency:
                        waiting = self._collect(waiting, bar)
                    waiting.add(pool.submit(self._keep, asked, answers))
                while waiting:
                    waiting = self._collect(waiting, bar)
            except BaseException:
                self._stopped.set()  # those that wait to try again give up
                for one in waiting:
                    one.cancel()
                raise

    def _collect(self, waiting: set[Future[None]], bar: tqdm[None]) -> set[Future[None]]:
        done, rest = wait(waiting, return_when=FIRST_COMPLETED)
        bar.update(len(done))
        for one in done:
            one.result()
        if self._failure is not None:
            raise self._failure
        return rest

    def _keep(self, asked: Asked, answers: Answers) -> None:
        """Ask and keep the answer; the first failure of all is noted, and the others ask no more."""
        try:
            if not self._stopped.is_set():
                self._answer(asked, answers)
        except TrainingError as error:
            self._failure = self._failure or error
            self._stopped.set()

    def _answer(self, asked: Asked, answers: Answers) -> None:
        told: dict[str, object] = {"source": "openai", "model": self._settings.model, "host": self.host}
        try:
            said = self._ask(asked.prompt)
        except _RefusedError as error:
            if not len(answers):
                raise TrainingError(
                    f"{self.host} refuses what it is asked ({error}); check model and longest"
                ) from error
            answers.add(asked, "", **told, date=today(), refused=str(error))
            return
        answers.add(asked, said.text, **told, date=today(), finish=said.finish)

    def _ask(self, prompt: str) -> _Said:
        """Ask once, and again while there is hope."""
        tries = self._settings.retries + 1
        for number in range(tries):
            self._pace.take()
            if self._stopped.is_set():
                raise TrainingError(f"{self.host} is not asked any more")
            try:
                return self._send(prompt)
            except _AgainError as error:
                if number + 1 == tries:
                    raise TrainingError(
                        f"{self.host} gave no answer in {tries} tries ({error}); the answers so far are kept, "
                        "run again to go on, or lower concurrency or requests_per_minute"
                    ) from error
                self._sleep(error.seconds if error.seconds is not None else min(LONGEST_WAIT_SECONDS, 2.0**number))
        raise AssertionError("there is at least one try")

    def _send(self, prompt: str) -> _Said:
        settings = self._settings
        messages = [{"role": "user", "content": prompt}]
        if settings.system:
            messages.insert(0, {"role": "system", "content": settings.system})
        body = {
            "model": settings.model,
            "messages": messages,
            "max_tokens": settings.longest,
            "temperature": settings.sampling_temperature,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "modularbase"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            settings.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=settings.timeout_seconds) as reply:
                return _read(reply.read(LARGEST_BYTES + 1))
        except urllib.error.HTTPError as error:
            with error:
                told = _message(error.read(LARGEST_BYTES))
                raise self._failed(error.code, told, error.headers.get("Retry-After")) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                raise TrainingError(f"{self.host} cannot be trusted ({error.reason}); check teacher.url") from error
            raise _AgainError(_reason(error.reason)) from error
        except (OSError, HTTPException) as error:
            raise _AgainError(_reason(error)) from error

    def _failed(self, status: int, message: str, retry_after: str | None) -> Exception:
        told = f"{status}{message and f': {message}'}"
        if status in (401, 403):
            name = self._settings.key_variable
            where = f"the key in {name}" if name else "to answer without a key, name its variable as key_variable and"
            return TrainingError(f"{self.host} refuses {where} ({told}); set a key that it takes")
        if status == 404:
            return TrainingError(
                f"{self.host} has no model {self._settings.model!r}, or no /chat/completions under "
                f"{self._settings.url} ({told}); check teacher.url and teacher.model"
            )
        if status in (400, 413, 422):
            return _RefusedError(told)
        if status in _AGAIN or status >= 500:
            return _AgainError(told, _seconds(retry_after))
        return TrainingError(f"{self.host} answers with {told}; check teacher.url")


@dataclass(frozen=True, slots=True)
class _Said:
    text: str
    finish: str


class _RefusedError(Exception):
    """This prompt is not answered, others may be."""


class _AgainError(Exception):
    """It is worth another try, after `seconds` where the service says so."""

    def __init__(self, told: str, seconds: float | None = None) -> None:
        super().__init__(told)
        self.seconds = seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nowhere: the key is for this host."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Refuse, so that the status itself is the answer."""


class _Pace:
    """Lets at most so many through a minute, evenly; 0 for no limit."""

    def __init__(self, per_minute: float, sleep: Callable[[float], object]) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock, self._sleep = 0.0, threading.Lock(), sleep

    def take(self) -> None:
        """Wait for a turn."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            self._sleep(turn - now)


def _read(raw: bytes) -> _Said:
    """Read a reply; one that is not as it should be may be cut off, and is worth another try."""
    try:
        choice = json.loads(raw)["choices"][0]
        text = choice["message"].get("content")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _AgainError("the reply holds no choices with a message") from error
    if text is not None and not isinstance(text, str):
        raise _AgainError("the reply's message is no text")
    return _Said(text or "", str(choice.get("finish_reason") or ""))


def _message(raw: bytes) -> str:
    """Return what an error's body says, in one short line."""
    try:
        value: Any = json.loads(raw)
        if isinstance(value, dict):
            value = value.get("error", value)
        if isinstance(value, dict):
            value = value.get("message", "")
    except ValueError:
        value = ""  # a page for people
    line = " ".join(str(value).split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _reason(error: object) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "it takes too long"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _seconds(retry_after: str | None) -> float | None:
    """Return what Retry-After asks to wait, at most LONGEST_WAIT_SECONDS; it is a number or a date (RFC 9110)."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(LONGEST_WAIT_SECONDS, max(0.0, seconds)) if seconds == seconds else None
