"""Bring one file over http, https or from the disk: resumed when it breaks, digested, never larger than it may be.

Decides when a server is asked again and when it is given up. Where the file belongs, and what is told when that
fails, is its caller's. What is downloaded is never run.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from io import FileIO
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from modularbase_core.errors import FetchError, ModularBaseError

Progress = Callable[[str, int, int], None]
"""Called with what is done, bytes done and bytes in all (0: unknown)."""

SCHEMES: Final = ("http", "https")
TIMEOUT_SECONDS: Final = 30
"""How long a silent server is waited for."""
ATTEMPTS: Final = 5
"""Connections in a row that may bring nothing."""
MOST_ATTEMPTS: Final = 100
"""Connections in all: a server that sends a little and hangs up does not hold us for ever."""
LONGEST_PAUSE_SECONDS: Final = 30.0
CHUNK_BYTES: Final = 1 << 20
TRANSIENT: Final = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers after which asking again helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One file to fetch.

    name: what people call it; sha256: "" when it is not known; limit_bytes: the most that it may have, None for any
    size.
    """

    name: str
    url: str
    sha256: str = ""
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What is told of a download that fails.

    listed: who says its digest; wrong: what to do about another; hopeless: what to do where asking again is no use;
    room: what to do when the disk is full; error: raised for bytes that are not what they should be.
    """

    listed: str
    wrong: str
    hopeless: str
    room: str
    error: type[ModularBaseError]


@contextmanager
def claim(path: Path, name: str, progress: Progress | None) -> Iterator[FileIO]:
    """Open the part for this process alone; it goes when its owner has renamed it or it is still empty."""
    while True:
        file = FileIO(path, "a+")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress is not None:
                    progress(f"{name}: another process is fetching it", 0, 0)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):
                try:
                    yield file
                finally:
                    if _is_at(file, path) and os.fstat(file.fileno()).st_size == 0:
                        path.unlink()
                return
        finally:
            file.close()


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


class _Interrupted(Exception):  # noqa: N818  # nothing is wrong yet: it is tried again
    """A connection that brought less than all. wait_seconds: what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Transfer:
    """One download into an open part file; `validator` keeps what tells whether the server still has that file.

    files: whether file: addresses are read too.
    """

    def __init__(
        self,
        download: Download,
        part: FileIO,
        validator: Path,
        wording: Wording,
        progress: Progress | None = None,
        *,
        files: bool = False,
        pause: Callable[[float], None] = time.sleep,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._download, self._part, self._validator, self._wording = download, part, validator, wording
        self._progress, self._pause, self._timeout_seconds = progress, pause, timeout_seconds
        self._store = validator.parent
        self._size = os.fstat(part.fileno()).st_size
        self._opener = _opener(files=files)

    def run(self) -> None:
        """Fill the part; raises the wording's error, the part gone, when its digest is wrong."""
        wanted = self._download.sha256
        resumed = self._size > 0
        if not wanted:
            self._complete()
        elif not (resumed and self._digest() == wanted):
            self._complete()
            got = self._digest()
            if got != wanted and resumed:  # what was kept may be of another file
                self._restart()
                self._complete()
                got = self._digest()
            if got != wanted:
                self._restart()
                raise self._wording.error(
                    f"{self._download.name} from {self._download.url} has SHA-256 {got[:12]}..., but "
                    f"{self._wording.listed} says {wanted[:12]}...; it was thrown away; {self._wording.wrong}"
                )
        os.fsync(self._part.fileno())
        self._validator.unlink(missing_ok=True)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        self._part.seek(0)
        while chunk := self._part.read(CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()

    def _restart(self) -> None:
        self._part.truncate(0)
        self._size = 0
        self._validator.unlink(missing_ok=True)

    def _complete(self) -> None:
        """Connect until everything is here, or nothing more comes."""
        idle = 0
        for _ in range(MOST_ATTEMPTS):
            before = self._size
            try:
                return self._connect()
            except _Interrupted as error:
                idle = 0 if self._size > before else idle + 1
                if idle == ATTEMPTS:
                    raise self._failed(str(error)) from None
                if idle or error.wait_seconds:
                    self._pause(min(max(2.0 ** (idle - 1), error.wait_seconds), LONGEST_PAUSE_SECONDS))
        raise self._failed(f"the connection broke {MOST_ATTEMPTS} times")

    def _failed(self, reason: str) -> FetchError:
        kept = "what has come is kept; try again later" if self._size else "check the network and try again"
        return FetchError(f"{self._download.name} cannot be fetched from {self._download.url} ({reason}); {kept}")

    def _connect(self) -> None:
        headers = {"User-Agent": "modularbase", "Accept-Encoding": "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if self._validator.is_file():
                headers["If-Range"] = self._validator.read_text(encoding="latin-1")
            elif not self._download.sha256:
                self._restart()  # nothing tells whether what was kept is of the same file
                del headers["Range"]
        request = urllib.request.Request(self._download.url, headers=headers)
        try:
            response = self._opener.open(request, timeout=self._timeout_seconds)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._answered(error.code, error.headers) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise self._unreachable(error) from None
        with response:
            self._receive(response)

    def _answered(self, code: int, headers: Message) -> Exception:
        """Tell what an answer that is no file means."""
        phrase = f"HTTP {code} {http.client.responses.get(code, '')}".rstrip()
        if code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and self._size:
            self._restart()  # more was kept than the server has
            return _Interrupted(phrase)
        if code in TRANSIENT:
            wanted = headers.get("Retry-After", "")
            return _Interrupted(phrase, float(wanted) if wanted.isdigit() else 0.0)
        if 300 <= code < 400:
            phrase += ", to where only http and https are followed"
        return self._hopeless(phrase)

    def _unreachable(self, error: Exception) -> Exception:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        told = str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
        of_no_server = urlsplit(self._download.url).scheme == "file"
        if of_no_server or isinstance(reason, (ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError)):
            return self._hopeless(told)
        return _Interrupted(told)

    def _hopeless(self, reason: str) -> FetchError:
        return FetchError(
            f"{self._download.name} cannot be fetched from {self._download.url} ({reason}); {self._wording.hopeless}"
        )

    def _receive(self, response: http.client.HTTPResponse) -> None:
        total = self._begin(response)
        self._check_limit(total or 0)
        self._check_space(total or 0)
        self._tell(total)
        while True:
            try:
                chunk = response.read1(CHUNK_BYTES)
            except (http.client.HTTPException, OSError) as error:
                raise _Interrupted(str(error) or type(error).__name__) from None
            if not chunk:
                break
            self._check_limit(self._size + len(chunk))
            _write(self._part, chunk)
            self._size += len(chunk)
            self._tell(total)
        if total is not None and self._size < total:
            raise _Interrupted(f"the connection ended after {self._size} of {total} bytes")

    def _begin(self, response: http.client.HTTPResponse) -> int | None:
        """Take the part to where this answer begins; return the bytes of the whole file, if they are told."""
        if response.status == http.client.PARTIAL_CONTENT:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != self._size:
                self._restart()
                raise _Interrupted("the server sent another part than was asked for")
            return None if found[2] == "*" else int(found[2])
        self._restart()  # the server gives no parts, or has another file now
        tag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        validator = modified if tag.startswith("W/") or not tag else tag
        if validator:
            self._validator.write_text(validator, encoding="latin-1")
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None

    def _check_limit(self, size: int) -> None:
        limit = self._download.limit_bytes
        if limit is not None and size > limit:
            self._restart()
            raise self._wording.error(
                f"{self._download.name} at {self._download.url} is larger than the {_mb(limit)} that "
                f"{self._wording.listed} leaves for it; it was thrown away; {self._wording.wrong}"
            )

    def _check_space(self, total: int) -> None:
        needed, free = total - self._size, shutil.disk_usage(self._store).free
        if needed > free:
            raise FetchError(
                f"{self._download.name} needs {_mb(needed)} but {self._store} has {_mb(free)} free; "
                f"{self._wording.room}"
            )

    def _tell(self, total: int | None) -> None:
        if self._progress is not None:
            self._progress(self._download.name, self._size, total or 0)


def _write(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https; urllib's own would go to ftp too."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in SCHEMES:
            raise urllib.error.HTTPError(newurl, code, msg, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(*, files: bool) -> urllib.request.OpenerDirector:
    """Make an opener that knows http and https, and `files` if asked to: no ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    if files:
        opener.add_handler(urllib.request.FileHandler())
    return opener
