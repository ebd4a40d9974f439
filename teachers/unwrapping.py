"""Finds the one network inside what training code saves around it.

Nesting keys (`params_ema`, `state_dict`, `G`, ...) and prefixes (`module.`, `_orig_mod.`, `net_g.`, ...) are taken away
one after the other, in any order, until somebody who knows networks recognises what is left. The keys as they are come
first: some networks' own names begin like a wrapper's (ESRGAN's `model.0.weight`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError

log = logging.getLogger(__name__)

State = dict[str, Tensor]

AVERAGED = ("ema", "averag", "swa", "shadow")
"""Parts of the names under which training code keeps averaged weights, which are better than the live ones."""
LIVE = (
    "params",
    "model_state_dict",
    "state_dict",
    "model",
    "net",
    "net_g",
    "netG",
    "generator",
    "module",
    "_orig_mod",
)
"""Names under which it keeps the live ones, in order."""
COUNTERS = ("n_averaged", "total_ops", "total_params")
"""Last parts of keys that torch's AveragedModel and profilers add to a network's own."""
DEPTH = 6
"""Wrappings around one network at the most."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to see a flat state dict in a checkpoint."""

    state: State
    path: tuple[str, ...] = ()
    """What was taken away: `params_ema` for a nesting key, `module.` for a prefix."""
    left_out: tuple[str, ...] = ()
    """First parts of keys that stand beside the network's and are no part of it."""

    def __str__(self) -> str:
        return " > ".join(self.path) or "as it is"


def unwrap(
    checkpoint: Any,
    where: str,
    recognised: Callable[[State], bool],
    *,
    expected: str = "a checkpoint of a known network",
    remedy: Callable[[], str] = str,
) -> State:
    """The tensors of the one network in a checkpoint, under that network's own keys.

    `recognised` says whether a flat state dict is a network that the caller can build. Averaged weights come before
    live ones. What stands beside the network (a loss, a discriminator) is left out and logged. Raises InputError, with
    `where` as its place, where nothing is recognised (with `expected`, `remedy` and what was tried), and where two
    networks are that no rule tells apart.
    """
    tried: list[Reading] = []
    for equals in _readings(checkpoint, (), (), DEPTH):
        tried += equals
        if not (found := [reading for reading in equals if recognised(reading.state)]):
            continue
        chosen = found[0]
        if rivals := [reading for reading in found[1:] if not _same(reading.state, chosen.state)]:
            named = ", ".join(str(reading) for reading in [chosen, *rivals])
            raise InputError(where, "one network", f"several: {named}", "Save the one that is meant alone.")
        if chosen.left_out:
            beside = ", ".join(chosen.left_out)
            log.warning("%s: read %s; left out what stands beside it: %s", where, chosen, beside)
        return chosen.state
    raise _unknown(checkpoint, tried, where, expected, remedy())


def _readings(
    node: Any, path: tuple[str, ...], beside: tuple[str, ...], depth: int
) -> Iterator[list[Reading]]:
    """Readings in order of preference; those of one list are equals, so only one of them may be a network."""
    if not isinstance(node, Mapping) or depth < 0:
        return
    tensors = {str(key): value for key, value in node.items() if isinstance(value, Tensor)}
    tensors = {key: value for key, value in tensors.items() if key.rpartition(".")[2] not in COUNTERS}
    if tensors:
        yield [Reading(tensors, path, beside)]
    inner: dict[str, tuple[Any, tuple[str, ...]]] = {
        str(key): (value, beside) for key, value in node.items() if isinstance(value, Mapping)
    }
    groups = _groups(tensors)
    for prefix, members in groups.items():
        inner[prefix] = (members, (*beside, *(f"{other}*" for other in groups if other != prefix)))
    for name in sorted((name for name in inner if _place(name) <= len(LIVE)), key=_place):
        yield from _readings(inner[name][0], (*path, name), inner[name][1], depth - 1)
    # Other names say nothing of what is under them.
    rest = [
        _readings(child, (*path, name), left_out, depth - 1)
        for name, (child, left_out) in inner.items()
        if _place(name) > len(LIVE)
    ]
    for level in zip_longest(*rest, fillvalue=[]):
        yield [reading for equals in level for reading in equals]


def _groups(tensors: State) -> dict[str, State]:
    """{first part of the keys with its dot: the tensors under it, by the rest of their keys}."""
    groups: dict[str, State] = {}
    for key, value in tensors.items():
        first, dot, rest = key.partition(".")
        if dot:
            groups.setdefault(f"{first}.", {})[rest] = value
    return groups


def _place(name: str) -> int:
    """0 for averaged weights, then the usual names of live ones in their order, then all others."""
    plain = name.rstrip(".")
    if any(part in plain.lower() for part in AVERAGED):
        return 0
    return LIVE.index(plain) + 1 if plain in LIVE else len(LIVE) + 1


def _same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _unknown(checkpoint: Any, tried: list[Reading], where: str, expected: str, remedy: str) -> InputError:
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        found = "an empty one" if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        return InputError(where, "a state dict", found)
    if not tried:
        keys = ", ".join(map(str, list(checkpoint)[:8])) + (", ..." if len(checkpoint) > 8 else "")
        advice = "A file that resumes a training may hold no weights; the network's own file lies beside it."
        return InputError(where, "a state dict of tensors", f"no tensors under {keys}", advice)
    largest = max(len(reading.state) for reading in tried)
    whole = next(reading for reading in tried if len(reading.state) == largest)
    found = f"{largest} tensors ({', '.join(list(whole.state)[:4])}, ...)"
    ways = list(dict.fromkeys(str(reading) for reading in tried if 2 * len(reading.state) >= largest))
    return InputError(where, expected, f"{found}; read {', '.join(ways[:6])}", remedy)
