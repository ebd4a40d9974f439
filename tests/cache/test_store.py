"""Stores: whole objects or none, locks, and names that stay inside."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from pipeline.cache import node as module
from pipeline.cache.node import CorruptShard
from pipeline.cache.store import LocalStore, Store
from pipeline.errors import FacultyError, InputError

pytestmark = pytest.mark.usefixtures("node")


@pytest.fixture(params=["folder", "file uri", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return Store.open(f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    folder = tmp_path / "a cache"
    return Store.open(folder if request.param == "folder" else folder.as_uri())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run(code: str, *args: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def test_files_come_back_as_they_were_written(store, tmp_path):
    (tmp_path / "local").write_bytes(b"22")
    store.write_bytes("a/one", b"1")
    store.put_file("a/b/two", tmp_path / "local")
    store.write_bytes("three", b"333")
    assert store.list() == [("a/b/two", 2), ("a/one", 1), ("three", 3)]
    assert store.list("a") == [("a/b/two", 2), ("a/one", 1)]
    assert store.list("nowhere") == []
    assert (store.read_bytes("a/b/two"), store.size("three"), store.sha256("a/one")) == (b"22", 3, sha(b"1"))
    store.write_bytes("three", b"4444")
    assert store.read_bytes("three") == b"4444"
    store.delete("three")
    store.delete("three")
    assert not store.exists("three") and not store.exists("a") and store.exists("a/one")


def test_a_file_that_is_not_there(store):
    for read in (store.read_bytes, store.size, store.sha256):
        with pytest.raises(FileNotFoundError):
            read("nothing")


def test_a_store_reopens_from_a_pickle(store):
    store.write_bytes("x", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert type(again) is type(store) and again.uri == store.uri and again.read_bytes("x") == b"1"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(store):
    store.write_bytes("x", b"old")
    with pytest.raises(RuntimeError), store.stage("x") as path:
        path.write_bytes(b"half of the n")
        raise RuntimeError
    assert store.read_bytes("x") == b"old" and store.list() == [("x", 3)]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_names_cannot_leave_the_store(store, name):
    with pytest.raises(InputError):
        store.write_bytes(name, b"")


def test_local_gives_verified_bytes(store):
    store.write_bytes("a/x.arrow", b"12345")
    path = store.local("a/x.arrow", sha256=sha(b"12345"), bytes=5)
    assert path.read_bytes() == b"12345" and path.suffix == ".arrow"


def test_local_refuses_missing_truncated_and_changed_files(store):
    with pytest.raises(CorruptShard, match="nothing there"):
        store.local("x", sha256=sha(b"12345"), bytes=5)
    for data, complaint in ((b"1234", "expected 5 bytes, found 4 bytes"), (b"12346", "expected sha256")):
        store.write_bytes("x", data)
        with pytest.raises(CorruptShard, match=complaint) as caught:
            store.local("x", sha256=sha(b"12345"), bytes=5)
        assert caught.value.where == store.where("x") and store.where("x") in caught.value.remedy
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_file_is_hashed_once_for_each_state(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(module, "file_sha256", lambda path: hashed.append(path) or sha(path.read_bytes()))
    store = LocalStore(tmp_path / "s")
    store.write_bytes("x", b"12345")
    for _ in range(3):
        store.local("x", sha256=sha(b"12345"), bytes=5)
    assert len(hashed) == 1
    store.path("x").write_bytes(b"12346")
    with pytest.raises(CorruptShard):
        store.local("x", sha256=sha(b"12345"), bytes=5)
    assert len(hashed) == 2


def test_a_remote_file_is_fetched_once_and_again_when_its_copy_is_damaged(s3, tmp_path):
    store = Store.open(f"{s3}/{tmp_path.name}")
    store.write_bytes("x", b"12345")
    path = store.local("x", sha256=sha(b"12345"), bytes=5)
    store.delete("x")
    assert store.local("x", sha256=sha(b"12345"), bytes=5) == path
    store.write_bytes("x", b"12345")
    for damage in (b"1234", b"12346"):
        path.write_bytes(damage)
        assert store.local("x", sha256=sha(b"12345"), bytes=5).read_bytes() == b"12345"


def test_a_damaged_remote_file_never_enters_the_node_cache(s3, tmp_path, node):
    store = Store.open(f"{s3}/{tmp_path.name}")
    store.write_bytes("x", b"12346")
    with pytest.raises(CorruptShard):
        store.local("x", sha256=sha(b"12345"), bytes=5)
    assert not [path for path in (node / "fetched").rglob("*") if path.is_file()]


def test_an_object_larger_than_one_part_arrives_whole(s3, tmp_path):
    store = Store.open(f"{s3}/{tmp_path.name}")
    data = os.urandom(12 << 20)
    store.write_bytes("big", data)
    assert store.size("big") == len(data) and store.sha256("big") == sha(data)


def test_other_pyarrow_filesystems_get_their_file_by_a_rename(tmp_path):
    store = Store.open("mock:///cache")
    store.write_bytes("a/x", b"1")
    assert store.list() == [("a/x", 1)] and store.read_bytes("a/x") == b"1"


@pytest.mark.parametrize("uri", ["nonsense://x/y", "http://example.org/x"])
def test_an_unknown_scheme_is_refused(uri):
    with pytest.raises(InputError, match="URI"):
        Store.open(uri)


FILL = """
    import resource, sys
    from pipeline.errors import FacultyError
    from pipeline.cache.store import Store
    store = Store.open(sys.argv[1])
    store.write_bytes("old", b"1")
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        store.write_bytes("deep/new", bytes(2 << 20))
    except FacultyError as error:
        print(error)
    print(store.list())
"""


def test_a_file_that_may_not_grow_is_named_and_leaves_nothing(tmp_path):
    text, _ = run(FILL, tmp_path, "limit").communicate(timeout=180)
    assert f"{tmp_path}/deep/new: cannot be written: File too large" in text and "make room" in text
    assert text.endswith("[('old', 1)]\n")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec"
    inside = ["unshare", "--mount", "sh", "-c", f'{mount} "$0" "$@"']
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system of one megabyte")
    command = [*inside, sys.executable, "-c", textwrap.dedent(FILL), tmp_path, "disk"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert f"{tmp_path}/deep/new: cannot be written: No space left" in result.stdout, result.stderr
    assert result.stdout.endswith("[('old', 1)]\n")


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FacultyError, match="file/below/x: cannot be written"):
        LocalStore(tmp_path / "file" / "below").write_bytes("x", b"1")


def test_a_writer_killed_in_the_middle_leaves_no_file_under_the_name(tmp_path):
    code = """
        import sys, time
        from pipeline.cache.store import Store
        with Store.open(sys.argv[1]).stage("x") as path:
            path.write_bytes(b"half")
            print("written", flush=True)
            time.sleep(60)
    """
    process = run(code, tmp_path / "s")
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=180)
    process.stdout.close()
    store = LocalStore(tmp_path / "s")
    assert not store.exists("x")
    assert [name.endswith(".tmp") for name, _ in store.list()] == [True]


HOLD = """
    import sys, time
    from pipeline.cache.store import Store
    with Store.open(sys.argv[1]).lock("lock"):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_lock_waits_says_for_whom_and_is_freed_by_sigkill(tmp_path):
    store = LocalStore(tmp_path)
    process = run(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    owners, entered = [], threading.Event()

    def enter() -> None:
        with store.lock("lock", on_wait=owners.append):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.3)
    assert owners and f"process {process.pid} on " in owners[0]
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=180)
    process.stdout.close()
    assert entered.wait(10)
    thread.join()
    assert len(owners) == 1


def test_a_free_lock_does_not_wait(tmp_path):
    store = LocalStore(tmp_path)
    for _ in range(2):
        with store.lock("a/lock", on_wait=lambda owner: pytest.fail(owner)):
            assert str(os.getpid()) in store.read_bytes("a/lock").decode()
        assert not store.exists("a/lock"), "no lock stays"


def test_processes_with_one_lock_take_turns(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from pipeline.cache.store import Store
        store, log = Store.open(sys.argv[1]), Path(sys.argv[2])
        for _ in range(20):
            with store.lock("lock"):
                value = int(log.read_text())
                time.sleep(0.001)
                log.write_text(str(value + 1))
    """
    (tmp_path / "log").write_text("0")
    processes = [run(code, tmp_path / "s", tmp_path / "log") for _ in range(2)]
    for process in processes:
        text, _ = process.communicate(timeout=180)
        assert process.returncode == 0, text
    assert (tmp_path / "log").read_text() == "40"


def test_two_writers_of_one_name_leave_one_whole_file(tmp_path):
    store = LocalStore(tmp_path)
    contents = [bytes([i]) * 300_000 for i in range(4)]
    end = time.monotonic() + 0.3

    def write(data: bytes) -> None:
        while time.monotonic() < end:
            store.write_bytes("x", data)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        assert not store.exists("x") or store.read_bytes("x") in contents
    for thread in threads:
        thread.join()
    assert store.list() == [("x", 300_000)]
