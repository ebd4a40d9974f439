from __future__ import annotations

ZOO: dict = {}
