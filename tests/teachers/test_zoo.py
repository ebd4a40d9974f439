"""Downloads of the zoo: resumed, checked, recorded, refused. The server is a local one that misbehaves on demand."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.errors import FacultyError, InputError
from teachers import zoo
from teachers.catalogue import ENTRIES, ZooEntry
from teachers.loading import load_teacher

CONTENT = bytes(range(256)) * 4000


@dataclass
class Server:
    """Serves `content` under any path; drops the connection after `cut` bytes of a response, once a number."""

    content: bytes = CONTENT
    tag: str = '"1"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    port: int = 0

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if urlsplit(request.path).path.endswith("/missing.pth"):
            request.send_error(404)
            return
        start = int(re.sub(r"\D", "", wanted)) if wanted and self.ranges else 0
        if request.headers.get("If-Range", self.tag) != self.tag:
            start = 0
        if start and start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("ETag", self.tag)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server.port = httpd.server_address[1]
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield server
        httpd.shutdown()
        thread.join()


def entry(server: Server, sha256: str | None = None, file: str = "net.pth") -> ZooEntry:
    url = f"http://127.0.0.1:{server.port}/{file}"
    return ZooEntry("net-x2", url, sha256, "EDSR", 2, 1, "MIT")


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_download_arrives_once_and_whole(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    path = zoo.fetch(entry(server, SHA256), folder=tmp_path, progress=lambda *step: steps.append(step))
    assert path.read_bytes() == CONTENT and path.name == "net-x2.pth"
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert zoo.fetch(entry(server, SHA256), folder=tmp_path) == path and len(server.asked) == 1
    assert not list(tmp_path.glob("*.part*"))


def test_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    path = zoo.fetch(entry(server, SHA256), folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_download_broken_too_often_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000] * 4
    with pytest.raises(FacultyError, match=r"4000 bytes are kept.*run again to go on"):
        zoo.fetch(entry(server, SHA256), folder=tmp_path)
    assert zoo.fetch(entry(server, SHA256), folder=tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=4000-"


def test_file_that_changed_at_the_server_is_not_joined_to_the_old_start(
    server: Server, tmp_path: Path
) -> None:
    server.cuts = [1000] * 4
    with pytest.raises(FacultyError):
        zoo.fetch(entry(server), folder=tmp_path)
    server.content, server.tag = CONTENT[::-1], '"2"'
    assert zoo.fetch(entry(server), folder=tmp_path).read_bytes() == CONTENT[::-1]


def test_server_without_ranges_is_asked_from_the_start(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [5000]
    assert zoo.fetch(entry(server, SHA256), folder=tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.content = b"something else"
    with pytest.raises(InputError, match=SHA256):
        zoo.fetch(entry(server, SHA256), folder=tmp_path)
    assert not list(tmp_path.glob("net-x2*"))


def test_unknown_sha256_is_recorded_first_and_enforced_then(server: Server, tmp_path: Path) -> None:
    path = zoo.fetch(entry(server), folder=tmp_path)
    assert (tmp_path / "net-x2.pth.sha256").read_text().strip() == SHA256
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(InputError, match=SHA256):
        zoo.fetch(entry(server), folder=tmp_path)
    path.unlink()
    server.content = b"replaced at the server"
    with pytest.raises(InputError, match=SHA256):
        zoo.fetch(entry(server), folder=tmp_path)


def test_a_record_that_a_kill_left_empty_says_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "net-x2.pth.sha256").touch()
    assert zoo.fetch(entry(server), folder=tmp_path).read_bytes() == CONTENT
    assert (tmp_path / "net-x2.pth.sha256").read_text().strip() == SHA256


def test_missing_address_is_named_and_not_asked_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FacultyError, match=r"missing\.pth could not be downloaded: HTTP Error 404"):
        zoo.fetch(entry(server, file="missing.pth"), folder=tmp_path)
    assert len(server.asked) == 1


def test_unreachable_server_is_named(server: Server, tmp_path: Path) -> None:
    gone = replace(entry(server), url="http://127.0.0.1:9/net.pth")
    with pytest.raises(FacultyError, match=r"127\.0\.0\.1:9/net\.pth could not be downloaded.*name its path"):
        zoo.fetch(gone, folder=tmp_path)


def test_archive_is_downloaded_once_for_all_its_members(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("models/a.pt", b"A")
        archive.writestr("models/b.pt", b"B")
    server.content = buffer.getvalue()
    base = replace(
        entry(server, file="models.zip?dl=1"), sha256=hashlib.sha256(b"A").hexdigest(), member="models/a.pt"
    )
    assert zoo.fetch(base, folder=tmp_path).read_bytes() == b"A"
    other = replace(base, name="other-x2", sha256=None, member="models/b.pt")
    assert zoo.fetch(other, folder=tmp_path).read_bytes() == b"B"
    assert len(server.asked) == 1
    with pytest.raises(InputError, match="holds models/c.pt"):
        zoo.fetch(replace(base, name="c-x2", member="models/c.pt"), folder=tmp_path)


def test_several_callers_share_one_download(server: Server, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=zoo.fetch, args=(entry(server, SHA256),), kwargs={"folder": tmp_path})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1


def test_name_of_the_zoo_becomes_a_teacher(
    server: Server, tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = (shared / "weights" / "pan_x3.pth").read_bytes()
    monkeypatch.setenv("FACULTY_TEACHERS", str(tmp_path))
    known = replace(zoo.ZOO["pan-x3"], url=f"http://127.0.0.1:{server.port}/pan.pth")
    monkeypatch.setitem(zoo.ZOO, "pan-x3", known)
    teacher = load_teacher("pan-x3")  # its tensors fit x2 as well: the zoo knows better
    info = teacher.info
    assert (info.name, info.scale, info.sha256, info.source) == ("pan-x3", 3, known.sha256, known.url)
    assert load_teacher(tmp_path / "pan-x3.pth", scale=3).info.name == "pan-x3"


def test_catalogue_is_consistent() -> None:
    assert len(zoo.ZOO) == len(ENTRIES)
    for known in ENTRIES:
        assert known.name.endswith(f"-x{known.scale}") and known.scale in (2, 3, 4)
        assert known.url.startswith("https://") and known.parameters > 0 and known.licence
        assert known.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", known.sha256)
        assert (known.member is None) == (not urlsplit(known.url).path.endswith(".zip"))
    assert {"swinir-m-x4", "edsr-l-x2", "rcan-x3", "hat-x4", "dat-x2", "realesrgan-x4"} <= set(zoo.ZOO)


def test_catalogue_agrees_with_real_checkpoints(shared: Path) -> None:
    from teachers.checkpoints import file_sha256

    files = {file_sha256(path): path for path in (shared / "weights").glob("*.pt*")}
    met = [known for known in ENTRIES if known.sha256 in files]
    assert len(met) == 17
    for known in met:
        info = load_teacher(files[str(known.sha256)], scale=known.scale).info
        assert (info.architecture, info.parameters) == (known.architecture, known.parameters)
