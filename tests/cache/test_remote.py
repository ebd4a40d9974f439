"""Stores behind an address: what it says, what of it is told, and uploads that break off."""

from __future__ import annotations

import pytest

from pipeline.cache.remote import RemoteStore
from pipeline.cache.store import Store
from pipeline.errors import FacultyError, InputError


def test_a_service_that_does_not_answer_is_named(monkeypatch):
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "x"}.items():
        monkeypatch.setenv(name, value)
    store = Store.open("s3://faculty/x?endpoint_override=127.0.0.1:9&scheme=http")
    with pytest.raises(FacultyError, match="^s3://faculty/x/y: cannot be reached"):
        store.exists("y")


def test_a_folder_below_keeps_the_options_of_the_address(tmp_path):
    store = Store.open("s3://key:secret@faculty/x?endpoint_override=127.0.0.1:9&scheme=http").below("runs/r")
    assert store.uri == "s3://key:secret@faculty/x/runs/r?endpoint_override=127.0.0.1:9&scheme=http"
    assert store.where("y") == "s3://faculty/x/runs/r/y"
    assert Store.open(tmp_path / "a b").below("c%20d").path("e") == tmp_path / "a b" / "c%20d" / "e"


def test_an_address_that_is_none_is_named_without_its_password():
    with pytest.raises(InputError) as caught:
        Store.open("s4://key:secret@faculty/x")
    assert "s4://faculty/x" in str(caught.value) and "secret" not in str(caught.value)


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    """Closing an object commits what there is of it."""
    store = RemoteStore(tmp_path.as_uri())
    store._direct = True

    def broken(source, sink, size):
        sink.write(source.read(3))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.cache.remote.shutil.copyfileobj", broken)
        with pytest.raises(KeyboardInterrupt):
            store.write_bytes("x", b"123456")
    assert not store.exists("x") and not list(tmp_path.iterdir())
    store.write_bytes("x", b"123456")
    assert store.read_bytes("x") == b"123456"
