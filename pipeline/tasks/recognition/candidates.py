"""What `faculty run --auto` tries for recognition, as data: {name: {path of the recipe: value}}, a line each.

A value may be at any path (`method`, `train.lr`, `loss.smoothing`). What a recipe does not take is left out of its
ladder and said.
"""

from __future__ import annotations

from typing import Any

CANDIDATES: dict[str, dict[str, Any]] = {
    "scratch": {"method": {"name": "scratch"}},
    "kd": {"method": {"name": "kd"}},
    "rkd": {"method": {"name": "rkd"}},
    "horkd": {"method": {"name": "horkd"}},
}
