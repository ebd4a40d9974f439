"""Downloads one file, going on where an earlier try broke off."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import FacultyError

log = logging.getLogger(__name__)

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes there are and the bytes there will be (None where the server does not say)."""

BLOCK = 1 << 20
ATTEMPTS = 4
TIMEOUT = 30.0  # seconds without a byte


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Holds a lock beside `target`, waiting for whoever holds it. The system frees it when a process dies."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def download(url: str, part: Path, progress: Progress | None = None) -> None:
    """Fills `part` with what `url` holds, going on after the bytes that are there already.

    The server's tag of the first try is kept beside `part`, so that bytes of two versions are never joined.
    Raises FacultyError when the address cannot be reached or breaks off `ATTEMPTS` times.
    """
    log.info("downloading %s", url)
    cause: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            if _go_on(url, part, progress or _log_progress()):
                _tag_file(part).unlink(missing_ok=True)
                return
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                cause = error
                break  # no such file, or not for us: asking again does not help
            part.unlink(missing_ok=True)
        except (OSError, http.client.HTTPException) as error:
            cause = error
    size = part.stat().st_size if part.exists() else 0
    raise FacultyError(
        f"{url} could not be downloaded: {cause or 'the connection was closed early'}. {size} bytes are kept in "
        f"{part}; run again to go on, or download the file by other means and name its path."
    )


def _go_on(url: str, part: Path, progress: Progress) -> bool:
    """One try. Returns whether `part` is complete, as far as the server tells."""
    have = part.stat().st_size if part.exists() else 0
    tag = _tag_file(part).read_text() if have and _tag_file(part).exists() else ""
    headers = {"User-Agent": "faculty"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if have and not resumed:
            have = 0  # the server starts over: it knows no ranges, or the file has changed
        if etag := response.headers.get("ETag"):
            _tag_file(part).write_text(etag)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                have += len(block)
                progress(have, total)
    return total is None or have == total


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _log_progress() -> Progress:
    """Logs each tenth of the way."""
    shown = -1

    def progress(done: int, total: int | None) -> None:
        nonlocal shown
        if total and done * 10 // total > shown:
            shown = done * 10 // total
            log.info("%.1f of %.1f MB", done / 1e6, total / 1e6)

    return progress
