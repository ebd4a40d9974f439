"""Names as MLflow takes them, one to one.

MLflow 3.17 takes letters and digits of any script, `_ - . /` and spaces, for pictures ASCII alone; a server on Windows
refuses the colon. Whatever else a name holds is spelled `_xHHHH_`, its code point in hexadecimal (as in SQL/XML), and
so is an underscore that would read as the start of such a spelling. Two names never become one, and every process
spells a name alike.
"""

from __future__ import annotations

import hashlib
import re

LENGTH = 250

_HELD = r"\w\-./ "
_SLASH = r"^/|/(?=/|$)"
"""MLflow refuses names that change as paths: with empty parts, with `.` and `..`; and those that start with `..`."""
_DOTS = re.compile(r"(?:(?<=/)|^)\.{1,2}(?=/|$)|^\.\.")


def legal(name: str, *, ascii_only: bool = False) -> str:
    """`name` spelled so that MLflow takes it; where that is longer than 250, its start and a digest of all of it."""
    flags = re.ASCII if ascii_only else 0
    other = rf"[^{_HELD}]|{_SLASH}"
    text = re.sub(rf"_(?=x[0-9A-F]{{4,}}(?:_|{other}))|{other}", _spelled, name, flags=flags)
    text = _DOTS.sub(_spelled, text) or "_x00000_"
    if len(text) > LENGTH:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
        text = f"{text[: LENGTH - 17]}-{digest}"
    return text


def _spelled(match: re.Match[str]) -> str:
    return "".join(f"_x{ord(character):04X}_" for character in match[0])
