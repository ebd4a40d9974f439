"""cache ls, verify, gc."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.cache import manifest as manifests
from pipeline.cache import records
from pipeline.cache.manifest import Manifest
from pipeline.cache.store import Store
from pipeline.cli.common import add_json, emit
from pipeline.errors import FacultyError, InputError
from pipeline.progress import Quiet
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.recipes import load_any

KINDS = ("tiles", "pictures", "outputs", "fused")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare these commands."""
    cache = commands.add_parser("cache", help="look at, verify and clean a cache")
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text, run in (
        ("ls", "list the finished sets", _ls),
        ("verify", "check every shard against its sha256", _verify),
        ("gc", "delete what no manifest names", _gc),
    ):
        command = actions.add_parser(name, help=text)
        command.add_argument(
            "root", nargs="?", default="cache", metavar="CACHE", help="folder or URI (default: cache)"
        )
        add_json(command)
        command.set_defaults(run=run)
        if name == "verify":
            command.add_argument(
                "--repair",
                action="store_true",
                help="set what is damaged aside, so that the next run makes it again",
            )
            command.add_argument(
                "--rerun", metavar="RECIPE", help="send a sample through this recipe's teachers again"
            )
            command.add_argument(
                "--sample", type=int, default=16, help="tiles per teacher for --rerun (default: 16)"
            )
        if name == "gc":
            command.add_argument("--dry-run", action="store_true", help="only say what would go")


def finished(store: Store, without: Collection[str] = ()) -> Iterator[tuple[str, Manifest]]:
    """Every manifest of a cache with its name, but for those in `without`. Raises InputError for a damaged one."""
    for kind in KINDS:
        for rel, _ in store.list(kind):
            if (
                rel.rsplit("/", 1)[-1].startswith("manifest-")
                and rel.endswith(".json")
                and rel not in without
            ):
                yield rel, manifests.load(store, rel)


def _open(options: argparse.Namespace) -> Store:
    store = Store.open(options.root)
    if not any(store.list(kind) for kind in KINDS):
        raise InputError(
            options.root, "a cache", "none here", "`faculty teach RECIPE` makes one; `cache.root` says where."
        )
    return store


def _ls(options: argparse.Namespace) -> None:
    store = _open(options)
    rows: list[dict[str, Any]] = [
        {
            "set": rel,
            "kind": m.kind,
            "name": str(m.inputs.get("name", m.inputs.get("kind", ""))),
            "fingerprint": m.fingerprint,
            "shards": len(m.shards),
            "rows": m.rows,
            "bytes": m.bytes,
        }
        for rel, m in finished(store)
    ]
    lines = [f"{'kind':8} {'name':16} {'tiles':>8} {'shards':>6} {'MB':>9}  manifest"]
    lines += [
        f"{r['kind']:8} {r['name']:16} {r['rows']:>8} {r['shards']:>6} {r['bytes'] / 1e6:>9.1f}  {r['set']}"
        for r in rows
    ]
    emit(options, {"sets": rows}, "\n".join(lines))


def _verify(options: argparse.Namespace) -> int:
    store = _open(options)
    if options.repair:
        with store.lock("building.lock"):
            return _verified(options, store)
    return _verified(options, store)


def _verified(options: argparse.Namespace, store: Store) -> int:
    bad = [
        {"file": rel, "kind": "damaged", "detail": why}
        for rel, _ in store.list()
        if (why := _flaw(store, rel))
    ]
    flawed = {b["file"] for b in bad}
    # What a damaged manifest lists is not extra.
    unknown = {rel.rpartition("/")[0] for rel in flawed if "/manifest-" in rel}
    seen: set[str] = set()
    folders: set[str] = set()
    for _, m in finished(store, without=flawed):
        folders |= {r.file.rsplit("/", 1)[0] for r in m.shards}
        fresh = tuple(r for r in m.shards if r.file not in seen)
        seen |= {r.file for r in fresh}
        part = Manifest(m.kind, m.fingerprint, m.inputs, fresh)
        for problem in manifests.verify_set(store, part, full=True):
            if problem.kind != "extra":
                bad.append({"file": problem.file, "kind": problem.kind, "detail": problem.detail})
    for folder in sorted(folders):
        for rel, size in store.list(folder):
            if rel.endswith(".arrow") and rel not in seen and folder not in unknown:
                bad.append({"file": rel, "kind": "extra", "detail": f"{size} bytes that no manifest names"})
    result: dict[str, object] = {"shards": len(seen), "bad": bad}
    damaged = [b for b in bad if b["kind"] == "damaged"]
    if options.repair:
        result["set_aside"] = aside = _repair(store, damaged)
        lines = (
            [f"{len(seen)} shards, {len(damaged)} damaged; set aside:", *aside]
            if aside
            else ["nothing to repair"]
        )
        lines += ["The command that made the cache makes these alone again."] * bool(aside)
        emit(options, result, "\n".join(lines))
        return 0
    lines = [f"{len(seen)} shards, {len(bad)} bad"] + [
        f"{b['kind']:8} {b['file']}: {b['detail']}" for b in bad
    ]
    if damaged:
        lines.append(
            f"`{shlex.join(['faculty', 'cache', 'verify', options.root, '--repair'])}` sets the damaged files aside; "
            "the command that made the cache then makes these alone again. By hand:"
        )
        lines += [shlex.join(["rm", "-f", store.where(b["file"])]) for b in damaged]
    if len(damaged) < len(bad):
        lines.append(f"`{shlex.join(['faculty', 'cache', 'gc', options.root])}` deletes what is extra.")
    if options.rerun:
        if damaged:
            raise FacultyError("\n".join([*lines, "--rerun needs a sound cache."]))
        result["rerun"] = rerun = _rerun(store, options)
        lines += [
            f"{n}: largest difference {v:g} over {options.sample} samples (pictures: in grey levels)"
            for n, v in rerun.items()
        ]
    emit(options, result, "\n".join(lines))
    return 1 if bad else 0


def _flaw(store: Store, rel: str) -> str:
    """What is wrong with a small file or a network's weights; nothing is changed. Shards are the manifests' matter."""
    from pipeline.training import checkpoint, weights

    name = rel.rsplit("/", 1)[-1]
    try:
        if name.startswith("manifest-") and name.endswith(".json"):
            manifests.load(store, rel)
        elif name.endswith(".json"):
            records.parse(rel, store.read_bytes(rel))
        elif name == weights.WEIGHTS:
            weights.read(store, rel)
        elif name.endswith(".pt"):
            return checkpoint.flaw(store, rel)
    except FileNotFoundError:  # gone meanwhile
        return ""
    except InputError as error:
        return f"expected {error.expected}, found {error.found}"
    except ValueError as error:
        return str(error)
    return ""


def _repair(store: Store, damaged: Sequence[dict[str, str]]) -> list[str]:
    """Set damaged files aside, and what vouches for them; returns their new names."""
    aside = []
    for bad in damaged:
        rel = bad["file"]
        for name in (rel, f"{rel}.json", rel.removesuffix(".pt") + ".json" if rel.endswith(".pt") else ""):
            if name and store.exists(name) and (moved := store.set_aside(name)) is not None:
                aside.append(moved)
    return aside


def _rerun(store: Store, options: argparse.Namespace) -> dict[str, float]:
    """{teacher: largest difference} between the cache and the teachers run again, here and now."""
    import torch

    from pipeline.steps.rerun import largest_difference

    recipe = load_any(options.rerun)
    recipe = recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"root": store.uri})})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run, worst = Run(recipe, InlineEngine(device), Quiet()), {}
    try:
        for kept in run.task.kept(run.planner):
            found = largest_difference(kept, store, options.sample, device, np.random.default_rng())
            if found is None:
                raise FacultyError(f"{kept.label}: no outputs of this recipe in {options.root}")
            worst[kept.label] = found
    except InputError:
        raise
    except FacultyError as error:
        teach = shlex.join(["faculty", "teach", options.rerun])
        raise FacultyError(f"{error}; run `{teach}` first") from None
    return worst


def _gc(options: argparse.Namespace) -> None:
    store = _open(options)
    with store.lock("building.lock"):
        keep = {r.file for _, m in finished(store) for r in m.shards}
        doomed = {rel: size for kind in KINDS for rel, size in manifests.unneeded(store, kind, keep).items()}
        for kind in () if options.dry_run else KINDS:
            manifests.gc(store, kind, keep)
    freed = sum(doomed.values())
    emit(
        options,
        {"deleted": list(doomed), "bytes": freed},
        "\n".join([*doomed, f"{'would free' if options.dry_run else 'freed'} {freed / 1e6:.1f} MB"]),
    )
