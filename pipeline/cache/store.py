"""Where caches live: a local folder or an object store. `Store.open` picks the kind."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.cache.base_store import DAMAGED, TEMPORARY, Store
from pipeline.cache.local_store import LocalStore

__all__ = ["DAMAGED", "TEMPORARY", "LocalStore", "Store"]


def _open(root: str | Path) -> Store:
    text = str(root)
    if isinstance(root, Path) or "://" not in text:
        return LocalStore(Path(root))
    if text.startswith("file:"):
        return LocalStore(Path(unquote(urlsplit(text).path)))
    from pipeline.cache.remote import RemoteStore  # pyarrow's filesystems take their time to load

    return RemoteStore(text)


Store.opener = staticmethod(_open)
