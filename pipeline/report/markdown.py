"""Text in markdown."""

from __future__ import annotations

import re


def one_line(text: str) -> str:
    """Without line breaks, which would end a quotation or a cell."""
    return " ".join(text.split())


def plain(text: str) -> str:
    """`text` without a meaning in markdown."""
    return re.sub(r"([\\|\[\]*_<>`])", r"\\\1", one_line(text))
