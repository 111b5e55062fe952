"""Public sources are fetched from a server on this machine and from files, and unpacked where nothing can escape."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest

from modularbase_core.errors import DataError, FetchError
from modularbase_core.train.fetching import NOTE_FILE, fetch_source, unpack
from modularbase_core.train.sources import PublicSource

CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Served:
    """breaks: bytes after which each connection ends; asked: the Range of each request."""

    def __init__(self):
        self.content, self.tag, self.breaks, self.asked = CONTENT, '"one"', [], []
        self.address = self.location = ""

    def source(self, *paths, **more):
        urls = tuple(f"{self.address}/{path}" for path in paths or ("a.bin",))
        return PublicSource(name="tiny", what="Bytes", licence="MIT", home="https://x.org", urls=urls, **more)


@pytest.fixture
def served():
    one = Served()

    class Answer(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            """Say nothing."""

        def do_GET(self):
            wanted = self.headers.get("Range")
            one.asked.append(wanted)
            if self.path == "/gone":
                self.send_error(404)
                return
            if one.location:
                self.send_response(302)
                self.send_header("Location", one.location)
                self.end_headers()
                return
            start = 0
            if wanted and self.headers.get("If-Range") == one.tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(one.content) - 1}/{len(one.content)}")
            else:
                self.send_response(200)
            if one.tag:
                self.send_header("ETag", one.tag)
            self.send_header("Content-Length", str(len(one.content) - start))
            self.end_headers()
            self.wfile.write(one.content[start : start + one.breaks.pop(0) if one.breaks else None])

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    listening.handle_error = lambda *error: None  # a client that hangs up is meant to
    one.address = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield one
    listening.shutdown()
    thread.join()
    listening.server_close()


def get(source, folder, progress=None):
    return fetch_source(source, folder, progress, pause=lambda seconds: None, timeout_seconds=5)


def test_a_source_lies_in_a_folder_of_its_own_with_a_note_and_nothing_else(served, tmp_path):
    told = []
    files = get(served.source("a.bin", "b.bin", sha256=(DIGEST, "")), tmp_path, lambda *now: told.append(now))
    assert files == [tmp_path / "tiny/a.bin", tmp_path / "tiny/b.bin"]
    assert all(file.read_bytes() == CONTENT for file in files)
    assert sorted(one.name for one in (tmp_path / "tiny").iterdir()) == [NOTE_FILE, "a.bin", "b.bin"]
    note = (tmp_path / "tiny" / NOTE_FILE).read_text()
    assert note.startswith(f"tiny: Bytes\nlicence: MIT\nhome: https://x.org\nfrom: {served.address}/a.bin\n")
    assert told[-1] == ("tiny/b.bin", len(CONTENT), len(CONTENT))


def test_a_broken_download_goes_on_where_it_ended(served, tmp_path):
    served.breaks = [100_000, 50_000]
    (file,) = get(served.source(sha256=(DIGEST,)), tmp_path)
    assert file.read_bytes() == CONTENT
    assert served.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_one_that_was_given_up_goes_on_later_if_the_server_still_has_the_same(served, tmp_path):
    served.breaks = [100_000, *[0] * 9]
    with pytest.raises(FetchError, match=r"tiny/a\.bin cannot be fetched .* what has come is kept; try again later"):
        get(served.source(), tmp_path)
    assert not (tmp_path / "tiny/a.bin").exists()
    served.breaks, served.asked[:] = [], []
    (file,) = get(served.source(), tmp_path)
    assert file.read_bytes() == CONTENT
    assert served.asked == ["bytes=100000-"]


def test_one_without_a_digest_begins_anew_where_nothing_tells_that_it_is_the_same(served, tmp_path):
    served.tag, served.breaks = "", [100_000]
    (file,) = get(served.source(), tmp_path)
    assert file.read_bytes() == CONTENT
    assert served.asked == [None, None]


def test_another_digest_than_the_catalogue_says_is_thrown_away(served, tmp_path):
    with pytest.raises(
        DataError, match=r"has SHA-256 .*, but the catalogue says 0000.*; it was thrown away; look at the"
    ):
        get(served.source(sha256=("0" * 64,)), tmp_path)
    assert [one.name for one in (tmp_path / "tiny").iterdir()] == [NOTE_FILE]


def test_nothing_is_written_over_and_what_is_missing_is_fetched(served, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/a.bin").write_text("mine")
    get(served.source("a.bin", "b.bin"), tmp_path)
    assert (tmp_path / "tiny/a.bin").read_text() == "mine"
    with pytest.raises(FetchError, match=r"tiny is in .*tiny already; remove it to fetch it again"):
        get(served.source("a.bin", "b.bin"), tmp_path)
    assert len(served.asked) == 1


def test_an_address_that_is_gone_is_one_sentence_at_once(served, tmp_path):
    with pytest.raises(FetchError, match=r"\(HTTP 404 Not Found\); look at the source's page for where it is now"):
        get(served.source("gone"), tmp_path)
    assert len(served.asked) == 1


def test_a_folder_that_cannot_be_written_is_one_sentence(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=r"tiny cannot be kept in .* \(Not a directory\); free space there or name"):
        get(served.source(), tmp_path / "file")


def test_files_are_fetched_from_the_disk_too(tmp_path):
    (tmp_path / "there.bin").write_bytes(CONTENT)
    named = {"name": "tiny", "what": "Bytes", "licence": "MIT"}
    source = PublicSource(**named, urls=((tmp_path / "there.bin").as_uri(),), sha256=(DIGEST,))
    (file,) = get(source, tmp_path / "to")
    assert file.read_bytes() == CONTENT
    with pytest.raises(FetchError, match=r"cannot be fetched from file:.*No such file"):
        get(PublicSource(**named, urls=("file:///nowhere/x",)), tmp_path / "other")


def test_files_of_a_disk_are_not_reached_through_a_server(served, tmp_path):
    served.location = "file:///etc/hostname"
    with pytest.raises(FetchError, match="to where only http and https are followed"):
        get(served.source(), tmp_path)


def tar(path, members):
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            file.addfile(info, None if content is None else io.BytesIO(content))


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if content is None else 0o100644) << 16
            file.writestr(info, content or b"/etc/passwd")


@pytest.mark.parametrize(("name", "pack"), [("x-1.tar.gz", tar), ("x-1.zip", zipped)])
def test_an_archive_is_unpacked_beside_itself_and_nothing_outside(tmp_path, name, pack):
    inside = tmp_path / "in"
    inside.mkdir()
    bad = [("../out.txt", b"bad"), (str(tmp_path / "abs.txt"), b"bad"), ("link", None), ("a/../../out.txt", b"bad")]
    pack(inside / name, [("repo/a.md", b"# A"), *bad, ("repo/b/c.py", b"x = 1")])
    told = []
    folder = unpack(inside / name, told.append)
    assert folder == inside / "x-1"
    files = sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir())
    assert files == ["repo/a.md", "repo/b/c.py"]
    assert told == [f"{name}: 4 links or files outside of the folder were left out"]
    assert sorted(one.name for one in tmp_path.rglob("*.txt")) == []
    assert sorted(one.name for one in inside.iterdir()) == ["x-1", name]
    with pytest.raises(DataError, match="x-1 is there already; remove it to unpack"):
        unpack(inside / name, told.append)


def test_a_damaged_archive_leaves_nothing(tmp_path):
    tar(tmp_path / "x.tar.gz", [("a", bytes(range(256)) * 400)])
    content = (tmp_path / "x.tar.gz").read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "y.zip").write_bytes(b"no zip")
    for name in ("x.tar.gz", "y.zip"):
        with pytest.raises(DataError, match=rf"{name} is damaged \(.+\); remove it and fetch it again"):
            unpack(tmp_path / name, print)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["x.tar.gz", "y.zip"]
    assert unpack(tmp_path / "plain.jsonl", print) is None
