"""A cluster whose head turned tokens on because of ~/.ray/auth_token; nobody sets a variable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from head_kit import Head
from road_kit import REPOSITORY, command, content, picture

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SENT = ("pipeline", "teachers", "students", "tune_spaces", "recipes")


def home_with(token: str | None) -> Path:
    home = Path(tempfile.mkdtemp(prefix="fh-"))
    if token:
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(token)
    return home


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = home_with("a-token-of-this-test-alone-0123456789")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stranger() -> Iterator[Path]:
    folder = home_with(None)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def head(home: Path) -> Iterator[Head]:
    found = Head(Path(tempfile.mkdtemp(prefix="frh-")), home)
    try:
        found.wait()
        yield found
    finally:
        found.end()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they come, and a recipe whose outputs lie where a variable says."""
    root = tmp_path_factory.mktemp("clone")
    for name in SENT:
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for seed, name in enumerate("ab"):
        picture(root / "pictures" / f"{name}.png", 72, 80, seed)
    settings = content(root, data={"train": ["pictures"]})
    settings |= {
        "output": "${SHARED_PLACE}/runs",
        "cache": {"root": "${SHARED_PLACE}/cache", "shard_mb": 0.1},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return root


def faculty(home: Path, cwd: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """The command of somebody with that HOME and a bare environment."""
    bare = {"HOME": str(home), "PATH": os.defpath, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    bare["SHARED_PLACE"] = str(cwd.parent / "shared")
    return subprocess.run(
        command(*arguments), cwd=cwd, env={**bare, **env}, capture_output=True, text=True, timeout=400
    )


def test_submit_works_at_the_first_try(head: Head, home: Path, clone: Path) -> None:
    done = faculty(home, clone, "submit", "--address", head.address, "teach", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert "shards written" in done.stdout and list((clone.parent / "shared").rglob("*.arrow"))
    assert f"sending {clone}: " in said and " MB; it runs by the head's " in said
    assert sys.executable in said.replace(" ", "") and "SHARED_PLACE" in said


@pytest.mark.slow
def test_doctor_and_run_know_the_token(head: Head, home: Path, clone: Path) -> None:
    done = faculty(home, clone, "doctor", "--address", f"127.0.0.1:{head.gcs}", "--cache", clone.parent / "c")
    assert f"ok  cluster           127.0.0.1:{head.gcs}: 1 node" in done.stdout, done.stdout + done.stderr
    given = ("teach", "recipe.yaml", "--address", f"127.0.0.1:{head.gcs}")
    done = faculty(home, clone, *given, "--set", f"cache.root={clone.parent / 'second'}")
    assert done.returncode == 0 and "shards written" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("way", ("submit", "run", "tune", "doctor"))
def test_without_a_token_it_says_what_to_do(head: Head, stranger: Path, clone: Path, way: str) -> None:
    address = f"127.0.0.1:{head.gcs}"
    arguments = {
        "submit": ("submit", "--address", head.address, "run", "recipe.yaml"),
        "run": ("run", "recipe.yaml", "--address", address),
        "tune": ("tune", "recipe.yaml", "--space", "loss_weights", "--trials", "1", "--address", address),
        "doctor": ("doctor", "--address", address, "--cache", clone.parent / "c"),
    }[way]
    done = faculty(stranger, clone, *arguments)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "wants a token, and this machine has none. Copy the head's ~/.ray/auth_token" in said
    assert "Error" not in said and "does not answer" not in said


@pytest.mark.slow
def test_rays_own_submit_works_as_the_documentation_says(head: Head, home: Path, clone: Path) -> None:
    """`export RAY_AUTH_MODE=token`, and the program by its whole path."""
    shared = clone.parent / "plain"
    (clone / "plain.yaml").write_text(
        (clone / "recipe.yaml").read_text().replace("${SHARED_PLACE}", str(shared))
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."),
            *("--address", head.address, "--", sys.executable, "-m", "pipeline.cli", "teach", "plain.yaml"),
        ],
        cwd=clone,
        env={"HOME": str(home), "PATH": os.defpath, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(shared.rglob("*.arrow"))


@pytest.mark.slow
def test_the_remedies_lead_on(head: Head, home: Path, stranger: Path, clone: Path) -> None:
    asked = ("doctor", "--address", f"127.0.0.1:{head.gcs}", "--cache", clone.parent / "c")
    file = home / ".ray" / "auth_token"
    for env in ({"RAY_AUTH_TOKEN": file.read_text()}, {"RAY_AUTH_TOKEN_PATH": str(file)}):
        done = faculty(stranger, clone, *asked, **env)
        assert "ok  cluster" in done.stdout, done.stdout + done.stderr
    done = faculty(stranger, clone, *asked, RAY_AUTH_TOKEN="another-token-0000000000000000000000")
    assert "takes another token than the one of RAY_AUTH_TOKEN" in done.stdout
    done = faculty(stranger, clone, *asked, RAY_AUTH_TOKEN_PATH=str(home / "absent"))
    assert (
        "NO  cluster           RAY_AUTH_TOKEN_PATH: expected a file with the cluster's token" in done.stdout
    )
    done = faculty(home, clone, *asked, RAY_AUTH_MODE="disabled")
    assert "wants a token, and RAY_AUTH_MODE=disabled keeps it back" in done.stdout


@pytest.mark.slow
def test_a_cluster_without_tokens_is_joined_where_a_token_lies(
    home: Path, stranger: Path, clone: Path
) -> None:
    open_head = Head(Path(tempfile.mkdtemp(prefix="fro-")), stranger)
    try:
        open_head.wait()
        given = ("teach", "recipe.yaml", "--address", f"127.0.0.1:{open_head.gcs}")
        done = faculty(home, clone, *given, "--set", f"cache.root={clone.parent / 'open'}")
        assert done.returncode == 0, done.stdout + done.stderr
        # one appears on the head meanwhile, as of a local ray.init there
        (stranger / ".ray").mkdir()
        (stranger / ".ray" / "auth_token").write_text((home / ".ray" / "auth_token").read_text())
        given = ("submit", "--address", open_head.address, "teach", "recipe.yaml")
        done = faculty(home, clone, *given, "--set", f"cache.root={clone.parent / 'open2'}")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        shutil.rmtree(stranger / ".ray", ignore_errors=True)
        open_head.end()
