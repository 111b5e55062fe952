"""Fetching weights from a server on this machine that misbehaves as it is told."""

import hashlib
import http.server
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field, replace

import pytest
from tiny_packs import PACK, manifest, write_pack

from modularbase_core.errors import FetchError, WeightsError
from modularbase_core.packs.fetch import ATTEMPTS, Download, fetch, missing
from modularbase_core.sdk.manifest import WEIGHTS_FILE, Manifest, write_manifest
from modularbase_core.sdk.pack import Pack

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What it serves and how; `asked` holds (path, Range, If-Range) of each request.

    breaks: bytes after which each connection ends, one by one; then they end no more.
    """

    address: str = ""
    content: bytes = CONTENT
    breaks: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    parts: bool = True
    tag: str | None = '"one"'
    length: bool = True
    location: str = ""
    seconds_per_chunk: float = 0.0
    retry_after: str = ""
    asked: list = field(default_factory=list)

    def download(self, **more):
        return Download(**{"name": "tiny/model.safetensors", "url": f"{self.address}/w", "sha256": DIGEST, **more})


@pytest.fixture
def server():
    served = Server()

    class Answer(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            """Say nothing."""

        def do_GET(self):
            wanted, validator = self.headers.get("Range"), self.headers.get("If-Range")
            served.asked.append((self.path, wanted, validator))
            if served.statuses:
                self.send_response(served.statuses.pop(0))
                if served.retry_after:
                    self.send_header("Retry-After", served.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", served.location)
                self.end_headers()
                return
            self.send_content(wanted, validator)

        def send_content(self, wanted, validator):
            content, start = served.content, 0
            if wanted and served.parts and validator in (None, served.tag):
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            if served.tag:
                self.send_header("ETag", served.tag)
            if served.length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + served.breaks.pop(0) if served.breaks else len(content)
            for at in range(start, min(end, len(content)), 1 << 16):
                self.wfile.write(content[at : min(end, at + (1 << 16))])
                time.sleep(served.seconds_per_chunk)

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    listening.handle_error = lambda *error: None  # a client that hangs up is meant to
    served.address = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield served
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def get(server, tmp_path, pauses):
    """Fetch into the store of this test, without waiting."""

    def call(progress=None, **more):
        return fetch(server.download(**more), tmp_path / "store", progress, pause=pauses.append, timeout_seconds=5)

    return call


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "store").iterdir())


def test_a_file_is_fetched_once_under_its_digest(get, server, tmp_path):
    told = []
    path = get(lambda *now: told.append(now))
    assert path == tmp_path / "store" / DIGEST
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == [DIGEST]
    assert told[0] == ("tiny/model.safetensors", 0, len(CONTENT))
    assert told[-1] == ("tiny/model.safetensors", len(CONTENT), len(CONTENT))
    assert get() == path
    assert len(server.asked) == 1


def test_a_broken_connection_goes_on_where_it_ended(get, server, tmp_path, pauses):
    server.breaks = [100_000, 200_000, 300_000]
    assert get().read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.asked] == [None, "bytes=100000-", "bytes=300000-", "bytes=600000-"]
    assert [validator for *_, validator in server.asked[1:]] == ['"one"'] * 3
    assert pauses == []  # each connection brought something
    assert left(tmp_path) == [DIGEST]


def test_a_server_without_parts_is_asked_for_all_again(get, server):
    server.breaks, server.parts = [100_000], False
    assert get().read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(get, server, tmp_path):
    old, server.content = server.content, b"x" * 200_000
    server.breaks = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(FetchError, match="what has come is kept"):
        get()
    assert (tmp_path / "store" / f"{DIGEST}.part").stat().st_size == 100_000
    server.content, server.tag, server.breaks = old, '"two"', []
    assert get().read_bytes() == CONTENT


def test_a_kept_part_of_another_file_is_found_out_without_a_validator(get, server, tmp_path):
    server.tag = None
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f"{DIGEST}.part").write_bytes(b"wrong" * 1000)
    assert get().read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.asked] == ["bytes=5000-", None]


def test_a_kept_part_that_is_whole_or_too_long_needs_no_second_thought(get, server, tmp_path):
    (tmp_path / "store").mkdir()
    part = tmp_path / "store" / f"{DIGEST}.part"
    part.write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert server.asked == []
    (tmp_path / "store" / DIGEST).unlink()
    part.write_bytes(CONTENT + b"more")
    assert get().read_bytes() == CONTENT
    assert left(tmp_path) == [DIGEST]


def test_a_wrong_digest_is_refused_and_nothing_else_is_deleted(get, server, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ("0" * 64)).write_bytes(b"of another pack")
    server.content = b"other bytes"
    with pytest.raises(WeightsError, match=r"has SHA-256 .*, but the manifest says .*thrown away"):
        get()
    assert left(tmp_path) == ["0" * 64]
    assert len(server.asked) == 1  # a whole fresh download is not tried again


@pytest.mark.parametrize("code", [403, 404, 410])
def test_an_answer_that_will_not_change_is_told_at_once(get, server, code, tmp_path):
    server.statuses = [code]
    with pytest.raises(FetchError, match=f"HTTP {code} .*upgrade the pack or tell its author"):
        get()
    assert left(tmp_path) == []


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(get, server, pauses):
    server.statuses, server.retry_after = [503, 429], "7"
    assert get().read_bytes() == CONTENT
    assert pauses == [7.0, 7.0]


def test_a_server_that_stays_away_is_given_up(get, server, pauses):
    server.statuses = [500] * 100
    with pytest.raises(FetchError, match="HTTP 500"):
        get()
    assert len(server.asked) == ATTEMPTS
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_nobody_listening_is_one_sentence(get, pauses):
    with pytest.raises(FetchError, match=r"\(Connection refused\); check the network and try again"):
        get(url="http://127.0.0.1:9/w")
    assert len(pauses) == ATTEMPTS - 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/w", "file:///etc/hostname", "data:,x"])
def test_other_addresses_than_the_webs_are_refused(get, url):
    with pytest.raises(FetchError, match="only http and https"):
        get(url=url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/w", "http://127.0.0.1/a b", "http://127.0.0.1/ü"])
def test_an_address_that_is_none_is_told_at_once(get, url, pauses):
    with pytest.raises(FetchError, match="tell its author"):
        get(url=url)
    assert pauses == []


def test_redirects_lead_to_the_web_alone(get, server):
    server.location = f"{server.address}/w"
    assert get(url=f"{server.address}/away").read_bytes() == CONTENT


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/w", "file:///etc/hostname"])
def test_redirects_elsewhere_are_refused(get, server, location):
    server.location = location
    with pytest.raises(FetchError, match="where only http and https are followed"):
        get(url=f"{server.address}/away")


def test_redirects_in_a_ring_end(get, server):
    server.location = f"{server.address}/away"
    with pytest.raises(FetchError, match="HTTP 302"):
        get(url=f"{server.address}/away")


def test_a_file_larger_than_the_manifest_says_is_refused_before_it_comes(get, server, tmp_path):
    with pytest.raises(WeightsError, match=r"larger than the 0\.1 MB"):
        get(limit_bytes=100_000)
    assert left(tmp_path) == []


def test_a_server_that_hides_the_size_is_stopped_at_the_limit(get, server, tmp_path):
    server.length = False
    with pytest.raises(WeightsError, match=r"larger than the 0\.1 MB"):
        get(limit_bytes=100_000)
    assert left(tmp_path) == []
    assert get().read_bytes() == CONTENT


def test_a_full_disk_is_told_before_and_what_came_is_kept(get, server, monkeypatch):
    space = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("modularbase_core.packs.transfer.shutil.disk_usage", lambda folder: space)
    with pytest.raises(FetchError, match=r"needs 1\.0 MB but .* has 0\.0 MB free"):
        get()


def test_a_disk_that_fills_up_meanwhile_is_one_sentence(get, monkeypatch):
    def full(file, chunk):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modularbase_core.packs.transfer._write", full)
    with pytest.raises(FetchError, match=r"cannot be kept in .*\(No space left on device\); free space there"):
        get()


def test_a_store_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match=r"cannot be kept in .*\(Not a directory\)"):
        fetch(server.download(), tmp_path / "file" / "store")


def test_ctrl_c_keeps_what_has_come(get, server, tmp_path):
    def interrupt(name, done, total):
        if done > 200_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(interrupt)
    kept = (tmp_path / "store" / f"{DIGEST}.part").stat().st_size
    assert kept > 200_000
    assert get().read_bytes() == CONTENT
    assert server.asked[-1][1] == f"bytes={kept}-"


def child(download, store):
    fetch(download, store)


def test_a_killed_process_leaves_a_part_that_goes_on(get, server, tmp_path):
    server.seconds_per_chunk = 0.05
    process = multiprocessing.get_context("spawn").Process(target=child, args=(server.download(), tmp_path / "store"))
    process.start()
    part = tmp_path / "store" / f"{DIGEST}.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.seconds_per_chunk = 0.0
    assert get().read_bytes() == CONTENT
    assert server.asked[-1][1] is not None
    assert left(tmp_path) == [DIGEST]


def test_of_many_at_once_one_fetches_and_the_others_wait(server, tmp_path):
    server.seconds_per_chunk = 0.005
    told, paths = [], []

    def call():
        paths.append(fetch(server.download(), tmp_path / "store", lambda *now: told.append(now[0])))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert len(server.asked) == 1
    assert left(tmp_path) == [DIGEST]
    assert "tiny/model.safetensors: another process is fetching it" in told


def test_who_waited_for_one_that_failed_fetches_itself(server, tmp_path):
    server.statuses = [404]
    outcomes = []

    def call():
        try:
            outcomes.append(fetch(server.download(), tmp_path / "store"))
        except FetchError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(one).__name__ for one in outcomes)[0] == "FetchError"
    assert (tmp_path / "store" / DIGEST).read_bytes() == CONTENT


def test_what_a_pack_lacks_is_bounded_by_the_size_that_it_claims(tmp_path):
    described = manifest("tiny", "domain", PACK)
    write_pack(tmp_path / "tiny", described)
    weights = tmp_path / "tiny" / WEIGHTS_FILE
    size, digest = weights.stat().st_size, Manifest.read(tmp_path / "tiny/manifest.json").files[WEIGHTS_FILE]
    write_manifest(tmp_path / "tiny", replace(described, downloads={WEIGHTS_FILE: "http://127.0.0.1/w"}))
    assert missing(Pack(tmp_path / "tiny")) == []
    weights.unlink()
    (lacking,) = missing(Pack(tmp_path / "tiny", tmp_path / "store"))
    assert (lacking.name, lacking.url, lacking.sha256) == (f"tiny/{WEIGHTS_FILE}", "http://127.0.0.1/w", digest)
    assert size <= lacking.limit_bytes <= size + 2000
