"""What a job takes along: the files of its working folder, counted by Ray's own rules before anything is sent."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray._private.ray_constants import (
    DASHBOARD_CLIENT_MAX_SIZE,
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from pipeline.errors import InputError

EXCLUDES = (
    ".git",
    ".venv",
    "__pycache__",
    ".*_cache",
    "/runs",
    "/cache",
    "/mlruns",
    "*.arrow",
    "*.db",
)
"""What a job does not need of the working folder, in .gitignore's spelling; what .gitignore and .rayignore name, in any
folder, stays at home too."""
LIMIT = DASHBOARD_CLIENT_MAX_SIZE
"""Bytes of a package that Ray's job server takes."""


@dataclass(frozen=True)
class Package:
    """The files that go along."""

    folder: Path
    excludes: tuple[str, ...]
    files: dict[str, int]
    """Path relative to the folder, with slashes -> bytes."""

    @property
    def size(self) -> int:
        """Bytes on the way: Ray sends them as a zip file that is not compressed."""
        return sum(size + 2 * len(os.fsencode(name)) + 120 for name, size in self.files.items())

    def below(self, path: str) -> int:
        """How many of the files are `path` or lie below it."""
        return sum(path in (".", name) or name.startswith(f"{path}/") for name in self.files)

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """The folders and files of the first level with the most bytes; of the second where one has nearly all."""
        for level in (1, 2):
            sizes: Counter[str] = Counter()
            for name, size in self.files.items():
                sizes["/".join(PurePosixPath(name).parts[:level])] += size
            found = sizes.most_common(count)
            if not found or found[0][1] < 0.9 * sum(sizes.values()):
                break
        return found

    def check(self) -> None:
        """Raise InputError where Ray would refuse the package, after minutes."""
        if self.size < LIMIT:
            return
        most = ", ".join(f"{name} {megabytes(size)}" for name, size in self.largest())
        raise InputError(
            f"--working-dir {self.folder}",
            f"at most {megabytes(LIMIT)}, which is what Ray's job server takes",
            f"{megabytes(self.size)} in {len(self.files)} files, the most in {most}",
            "List what the job does not need in .gitignore or .rayignore, and keep pictures in a network folder that "
            "all nodes have at the same path.",
        )

    def __str__(self) -> str:
        return f"{len(self.files)} file{'s' * (len(self.files) != 1)}, {megabytes(self.size)}"


def pack(folder: Path, more: Iterable[str] = ()) -> Package:
    """The files of `folder` without EXCLUDES, without `more` (paths below it) and without what its ignore files name.

    Raises InputError for a folder that is missing.
    """
    if not folder.is_dir():
        raise InputError("--working-dir", "a folder", str(folder))
    folder = folder.resolve()
    excludes = (*EXCLUDES, *("/" + re.sub(r"([\[\]*?!#\\ ])", r"\\\1", path) for path in more))
    files: dict[str, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    _dir_travel(
        folder,
        [_get_excludes(folder, [*get_runtime_env_default_excludes(), *excludes])],
        take,
        logger=logging.getLogger(__name__),
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
    )
    return Package(folder, excludes, files)


def megabytes(count: int) -> str:
    """Bytes for people: 312 MB, 0.4 MB."""
    return f"{count / 1e6:.0f} MB" if count >= 10e6 else f"{count / 1e6:.1f} MB"
