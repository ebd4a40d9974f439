"""The machine's copies of stored shards: bounded, shared, held while they are read; and stores that refuse."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from road_kit import Road, environment, hashes, picture, recipe

from pipeline.cache import node as module
from pipeline.cache.node import Hold, limit, make_room
from pipeline.cache.store import Store
from pipeline.errors import FacultyError, InputError

pytestmark = pytest.mark.usefixtures("node")

MB = 10**6


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for three files of a megabyte; nothing counts as just used."""
    monkeypatch.setenv("FACULTY_NODE_CACHE_GB", "0.0035")
    monkeypatch.setattr(module, "RECENT_S", 0.0)


@pytest.fixture
def store(s3: str, tmp_path: Path) -> Store:
    return Store.open(f"{s3}/{tmp_path.name}")


def put(store: Store, number: int) -> tuple[str, str]:
    data = bytes([number]) * MB
    store.write_bytes(f"{number}.arrow", data)
    return f"{number}.arrow", sha(data)


def fetch(store: Store, name: str, digest: str) -> Path:
    found = store.local(name, sha256=digest, bytes=MB)
    time.sleep(0.01)  # uses are told apart
    return found


def test_the_copies_used_longest_ago_go_first(store: Store, bounded: None) -> None:
    files = [put(store, i) for i in range(4)]
    paths = [fetch(store, *file) for file in files[:3]]
    fetch(store, *files[0])  # used again
    paths.append(fetch(store, *files[3]))
    assert [p.exists() for p in paths] == [True, False, True, True]
    assert fetch(store, *files[1]).read_bytes() == bytes([1]) * MB, "fetched again when it is wanted again"
    assert sum(p.stat().st_size for p in paths[0].parent.parent.rglob("*.arrow")) <= 3.5 * MB


def test_what_a_training_holds_stays_and_what_a_dead_one_held_goes(store: Store, bounded: None) -> None:
    files = [put(store, i) for i in range(4)]
    paths = [fetch(store, *file) for file in files[:3]]
    hold = store.hold(files[:2])
    paths.append(fetch(store, *files[3]))
    assert [p.exists() for p in paths] == [True, True, False, True], "the oldest two are held"
    everything = store.hold([*files[:2], files[3]])
    with pytest.raises(
        FacultyError, match=r"is full: 0.001 GB do not fit: 0.003 of 0.0035 GB are in use.*NODE_CACHE_GB"
    ):
        fetch(store, *files[2])
    del hold, everything
    code = "import sys, time; from pipeline.cache.node import Hold; h = Hold(sys.argv[1:])"
    code += "; print(1, flush=True); time.sleep(99)"
    names = [p.name for p in paths]
    other = subprocess.Popen([sys.executable, "-c", code, *names], env=environment(), stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(FacultyError, match="is full"):
            fetch(store, *files[2])
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert fetch(store, *files[2]).exists(), "nobody holds them any more"


def test_processes_of_one_machine_fetch_a_file_once(store: Store, s3: str, tmp_path: Path) -> None:
    name, digest = put(store, 7)
    code = """
        import sys
        from pipeline.cache import remote
        from pipeline.cache.store import Store
        fetches = []
        real = remote.RemoteStore._reading
        remote.RemoteStore._reading = lambda self, rel: (fetches.append(rel), real(self, rel))[1]
        Store.open(sys.argv[1]).local(sys.argv[2], sha256=sys.argv[3], bytes=10**6)
        print(len(fetches))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), store.uri, name, digest]
    work = [subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sum(int(each.communicate()[0]) for each in work) == 1


def test_a_training_is_told_when_the_machine_cannot_hold_its_shards(
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(3):
        picture(tmp_path / "pictures" / f"{seed}.png", 96, 120, seed)
    settings = recipe(tmp_path, cache={"root": f"{s3}/{tmp_path.name}/cache", "shard_mb": 0.05})
    Road(settings).teach()
    monkeypatch.setenv("FACULTY_NODE_CACHE_GB", "0.00005")
    with pytest.raises(FacultyError, match="is full.*FACULTY_NODE_CACHE_GB"):
        Road(settings).distill()


@pytest.mark.slow
def test_a_whole_road_over_a_bucket_equals_one_over_a_folder(s3: str, tmp_path: Path) -> None:
    from road_kit import weights

    for seed in range(3):
        picture(tmp_path / "pictures" / f"{seed}.png", 96, 104, seed)
    there = f"{s3}/{tmp_path.name}"
    far = recipe(tmp_path, cache={"root": f"{there}/cache"}, output=f"{there}/runs")
    (job,) = Road(far).distill()[3]
    (near,) = Road(recipe(tmp_path)).distill()[3]
    assert weights(job) == weights(near)
    store = Store.open(there)
    names = [name for name, _ in store.list("runs")]
    assert any(n.endswith("weights.safetensors") for n in names) and any("/step-" in n for n in names)
    local = hashes(tmp_path / "cache", "*.arrow")
    assert {
        n.removeprefix("cache/"): store.sha256(n) for n, _ in store.list("cache") if n.endswith(".arrow")
    } == local


# ---- stores that refuse


def test_a_missing_bucket_is_bad_input(s3: str, tmp_path: Path) -> None:
    picture(tmp_path / "pictures" / "a.png", 64, 64, 0)
    settings = recipe(tmp_path, cache={"root": "s3://no-such-bucket-here/cache"})
    with pytest.raises(InputError, match="expected a bucket named no-such-bucket-here.*cache.root") as caught:
        Road(settings).teach()
    assert caught.value.exit_code == 2


def test_wrong_credentials_are_bad_input_and_not_shown(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a server that, unlike moto by default, refuses."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Refuses(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.send_response(403)
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = refuse

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    try:
        for use in (lambda s: s.exists("x"), lambda s: s.list(), lambda s: s.write_bytes("x", b"1")):
            with pytest.raises(
                InputError, match="expected credentials that may use the bucket mine"
            ) as caught:
                use(Store.open("s3://mine/cache"))
            assert "AWS_SECRET_ACCESS_KEY" in str(caught.value) and "hush" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("text", ["many", "0", "-1"])
def test_a_bound_is_a_positive_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FACULTY_NODE_CACHE_GB", text)
    with pytest.raises(InputError, match="FACULTY_NODE_CACHE_GB: expected a number above 0"):
        limit()


def test_without_a_bound_the_disk_is_one(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert 0.8 * free < limit() < free
    make_room(1, "x")
    with pytest.raises(FacultyError, match="do not fit"):
        make_room(2 * free, "x")


def test_a_full_disk_names_the_machine_and_what_to_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name, digest = put(store, 3)
    monkeypatch.setattr("pipeline.cache.remote.shutil.copyfileobj", no_room)
    with pytest.raises(
        FacultyError, match=r"is full: .*No space left on device.*FACULTY_NODE_CACHE names a folder"
    ):
        fetch(store, name, digest)
    assert not list(module.node_cache().rglob("*.tmp"))


def test_a_hold_leaves_no_file() -> None:
    hold = Hold(["a"])
    assert len(list((module.node_cache() / "held").iterdir())) == 1
    del hold
    assert not list((module.node_cache() / "held").iterdir())
