"""Starting a local Ray where TMPDIR, HOME and tokens are as they may be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from road_kit import environment

from pipeline.engine import session
from pipeline.errors import FacultyError, InputError

START = """
import os
import ray
from pipeline.engine import session

before = dict(os.environ)
session.start(None)
folder = os.environ["RAY_TMPDIR"]
assert ray.get(ray.remote(lambda: 7).remote()) == 7
session.stop()
kept = {n for n in ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN") if os.environ.get(n) != before.get(n)}
assert not kept and not os.path.exists(folder), (kept, folder)
print(folder)
"""


def started(**env: str) -> subprocess.CompletedProcess[str]:
    bare = {k: v for k, v in environment().items() if k not in ("RAY_TMPDIR", "TMPDIR")}
    return subprocess.run(
        [sys.executable, "-c", START], env={**bare, **env}, capture_output=True, text=True, timeout=200
    )


def folder_of(length: int) -> Path:
    base = tempfile.mkdtemp(prefix="f", dir=os.path.join(os.sep, "tmp"))
    folder = Path(base, "x" * (length - len(base) - 1))
    folder.mkdir()
    assert len(str(folder)) == length
    return folder


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("length", (*(pytest.param(n, marks=pytest.mark.slow) for n in (28, 41)), 90))
def test_ray_starts_with_a_long_tmpdir(length: int) -> None:
    folder = folder_of(length)
    try:
        done = started(TMPDIR=str(folder))
        assert done.returncode == 0, done.stderr
        assert (str(folder) in done.stdout) == (length <= session.room())
    finally:
        shutil.rmtree(folder.parent)


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "variable",
    (
        "HOME=null",
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in (
                "TMPDIR=nowhere",
                "RAY_TMPDIR=made",
                "RAY_AUTH_MODE=disabled",
                "RAY_AUTH_TOKEN_PATH=absent",
            )
        ),
    ),
)
def test_ray_starts_whatever_the_environment_says_of_tokens_and_folders(variable: str) -> None:
    base = tempfile.mkdtemp(prefix="f", dir=os.path.join(os.sep, "tmp"))
    name, value = variable.split("=")
    values = {"nowhere": f"{base}/no", "made": f"{base}/m", "absent": f"{base}/t", "null": "/dev/null/home"}
    try:
        done = started(**{name: values.get(value, value)})
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(base)


def test_no_room_for_a_socket_names_the_variable_its_length_and_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    monkeypatch.setattr(session, "SHORT", ())
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(InputError) as caught:
        session._own_folder()
    said = str(caught.value)
    assert said.startswith(f"RAY_TMPDIR: expected a path of at most {session.room()} bytes")
    assert (
        f"({len(str(long))} bytes)" in said and "export RAY_TMPDIR=" in said and "does not answer" not in said
    )


@pytest.mark.parametrize("address", ("http://127.0.0.1:8265", "https://head"))
def test_a_dashboards_address_is_not_rays(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match="ray://HOST:10001, HOST:6379 or auto.*faculty submit"):
        session._join(address)


def test_an_address_that_nobody_answers_at_is_named() -> None:
    with pytest.raises(FacultyError, match="Ray at '127.0.0.1:9' does not answer"):
        session._join("127.0.0.1:9")
