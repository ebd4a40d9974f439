"""Pretrained networks by name, and a download that can be trusted.

A download is resumed where it broke off and checked against its sha256. Where the catalogue knows none, the one of
the first download is written beside the file and enforced from then on.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pipeline.errors import InputError
from teachers.catalogue import ENTRIES, ZooEntry
from teachers.checkpoints import file_sha256
from teachers.download import Progress, alone, download

ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in ENTRIES}


def home() -> Path:
    """Where downloads are kept: $FACULTY_TEACHERS, or the user's cache folder."""
    return Path(os.environ.get("FACULTY_TEACHERS") or Path.home() / ".cache" / "faculty" / "teachers")


def fetch(entry: ZooEntry, *, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """The checkpoint's file, downloaded into `folder` (default `home()`) unless it is there already.

    One process downloads, others wait for it. An archive is kept for the other checkpoints in it. Raises
    InputError when the bytes are not those of `entry.sha256` or of the first download, FacultyError when the
    address cannot be reached.
    """
    folder = home() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    published = PurePosixPath(urlsplit(entry.url).path)
    suffix = PurePosixPath(entry.member or published).suffix
    target = folder / f"{entry.name}{suffix}"
    record = folder / f"{target.name}.sha256"
    with alone(target):
        expected = entry.sha256 or (record.read_text().strip() if record.exists() else "") or None
        if not target.exists():
            part = folder / f"{target.name}.part"
            if entry.member is None:
                download(entry.url, part, progress)
            else:
                _extract(_archive(entry.url, folder / published.name, progress), entry.member, part)
            _compare(part, expected, entry)
            os.replace(part, target)
        digest = _compare(target, expected, entry)
        if expected is None:
            fresh = record.with_name(f"{record.name}.part")
            fresh.write_text(f"{digest}\n")
            os.replace(fresh, record)
    return target


def _archive(url: str, target: Path, progress: Progress | None) -> Path:
    with alone(target):
        if not target.exists():
            part = target.with_name(f"{target.name}.part")
            download(url, part, progress)
            os.replace(part, target)
    return target


def _extract(archive: Path, member: str, part: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            part.write_bytes(opened.read(member))
    except (zipfile.BadZipFile, KeyError) as error:
        remedy = f"Remove {archive.name} to download it again."
        raise InputError(str(archive), f"a zip archive that holds {member}", str(error), remedy) from None


def _compare(path: Path, expected: str | None, entry: ZooEntry) -> str:
    """The file's sha256. Raises InputError where it is not `expected`; an unfinished file is removed."""
    digest = file_sha256(path)
    if expected is not None and digest != expected:
        if path.suffix == ".part":
            path.unlink()
        remedy = f"It came from {entry.url}. Remove {path.name} to download it again."
        raise InputError(str(path), f"sha256 {expected}", digest, remedy)
    return digest
