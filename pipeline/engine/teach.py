"""Teacher actors: one pool a teacher, one shard in, one shard out, results written by the actor, receipts returned.

An actor takes several calls at a time and lets few compute: while these do, the others read their samples or write
their shards. A call is idempotent, so a dead actor is restarted and its shard taught again. What a teacher that is done
leaves free, another that has much to do gets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.cache.format import Receipt
from pipeline.cache.stats import Stats
from pipeline.engine import session
from pipeline.engine.shares import settled
from pipeline.recipe.recipe import Teach
from pipeline.steps.engines import Taught
from pipeline.steps.overlap import UNDER_WAY, Overlapped
from pipeline.steps.values import Network, OutputStep

log = logging.getLogger(__name__)
WORTH_S = 30.0
"""One more actor is started for a teacher whose shards that nobody has begun would take longer than this."""
NEWS_S = 2.0
"""Between two questions how far shards are."""


@ray.remote(concurrency_groups={"news": 1})
class TeacherActor:
    """A loaded network."""

    def __init__(self, network: Network, cache: str) -> None:
        self.network = Overlapped(network, cache, "cuda" if ray.get_gpu_ids() else "cpu")

    def ready(self) -> None:
        """Answers once the network is loaded."""

    @ray.method(concurrency_group="news")
    def computed(self) -> float:
        """Samples that are computed and not yet committed."""
        return self.network.computed()

    def teach(self, step: OutputStep, threads: int) -> tuple[Receipt, Stats]:
        """Teach one shard with `threads` CPU threads."""
        return self.network(step, threads)


@dataclass(slots=True)
class Pool:
    """One teacher's actors and what is left for them."""

    label: str
    todo: list[OutputStep]
    make: Callable[[], Any]
    """Starts an actor."""
    starting: dict[Any, Any] = field(default_factory=dict)
    """Actors by the answer that is awaited from them. Where not all fit at once, some start when others end."""
    actors: list[Any] = field(default_factory=list)
    busy: dict[Any, tuple[Any, OutputStep]] = field(default_factory=dict)
    done: float = 0.0
    """Samples of committed shards."""
    computed: dict[Any, float] = field(default_factory=dict)
    """By actor: samples of others, as it last said."""
    since: float = 0.0
    """When the first actor was ready."""

    @property
    def size(self) -> int:
        return len(self.actors) + len(self.starting)

    def grow(self) -> None:
        """Start one more actor."""
        actor = self.make()
        self.starting[actor.ready.remote()] = actor

    def left(self) -> float:
        """Seconds that the shards would take that nobody has begun, at the pace so far; 0 while that is not known."""
        made = self.done + sum(self.computed.values())
        todo = sum(step.samples.rows for step in self.todo)
        return todo * (time.monotonic() - self.since) / made if made else 0.0

    def load_of(self, actor: Any) -> int:
        return sum(a is actor for a, _ in self.busy.values())

    def end(self) -> None:
        """Give back what the actors hold."""
        for actor in (*self.actors, *self.starting.values()):
            ray.kill(actor)
        self.actors.clear()
        self.starting.clear()
        self.computed.clear()


def sizes(
    settings: Teach, tasks: Mapping[str, tuple[Network, Sequence[OutputStep]]], slots: int
) -> dict[str, int]:
    """Actors per teacher. `auto` gives each teacher one and shares the remaining slots out by work
    (multiply-adds x samples).
    """
    if isinstance(settings.actors, int):
        wanted = dict.fromkeys(tasks, settings.actors)
    elif isinstance(settings.actors, dict):
        wanted = {label: settings.actors.get(label, 1) for label in tasks}
    else:
        work = {
            n: (f.multiply_adds or 1) * sum(t.samples.rows for t in todo) for n, (f, todo) in tasks.items()
        }
        wanted = dict.fromkeys(tasks, 1)
        for _ in range(max(slots - len(tasks), 0)):
            neediest = max(wanted, key=lambda n: work[n] / wanted[n])
            wanted[neediest] += 1
    return {label: min(wanted[label], len(todo)) for label, (_, todo) in tasks.items()}


def needs(settings: Teach) -> dict[str, float]:
    """What one actor must find free on a node."""
    cpus = 0.0 if settings.cpus_per_actor == "auto" else settings.cpus_per_actor
    return {"CPU": cpus, "GPU": settled(settings.gpus_per_actor)}


def run(
    tasks: Mapping[str, tuple[Network, Sequence[OutputStep]]],
    settings: Teach,
    taught: Taught,
    moved: Callable[[float], None],
) -> None:
    """Teach everything. Raises what a teacher raised, or RayActorError when an actor died more often than allowed."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), session.most("GPU")
    each = settled(settings.gpus_per_actor)
    slots = int((gpus + 1e-9) / each) if each else cpus
    counts = sizes(settings, tasks, slots)
    share = settings.cpus_per_actor
    if share == "auto":
        # All actors must fit at once, or the teachers would run one after the other; threads are set per call.
        share = min(1.0, cpus / max(sum(counts.values()), 1))
    calls = UNDER_WAY["cuda" if each else "cpu"]
    start = TeacherActor.options(
        num_cpus=float(share),
        num_gpus=each,
        max_concurrency=calls,
        max_restarts=settings.max_restarts,
        # Calls to a node that has just gone fail in quick succession, long before Ray knows that it has; how often an
        # actor may die is what `max_restarts` bounds.
        max_task_retries=-1,
    )
    pools = []
    try:
        for label, (network, todo) in tasks.items():
            pools.append(Pool(label, list(todo), partial(start.remote, network, todo[0].cache)))
            for _ in range(counts[label]):
                pools[-1].grow()
        _drive(pools, cpus, settings.threads, calls, taught, moved, slots if settings.actors == "auto" else 0)
    finally:
        for pool in pools:
            pool.end()


def _drive(
    pools: list[Pool],
    cpus: int,
    fixed: int | str,
    calls: int,
    taught: Taught,
    moved: Callable[[float], None],
    slots: int,
) -> None:
    """Keep every actor `calls` calls deep; hand each finished shard's receipt on, and now and then how far the others
    are. Of `slots` none stays empty while a teacher has much to do.
    """
    asked = time.monotonic()
    while any(p.todo or p.busy for p in pools):
        running = sum(min(p.size, len(p.todo) + len(p.busy)) for p in pools)
        threads = fixed if isinstance(fixed, int) else max(1, cpus // max(running, 1))
        for pool in pools:
            for _ in range(calls):
                for each in pool.actors:
                    if pool.todo and pool.load_of(each) < calls:
                        task = pool.todo.pop(0)
                        pool.busy[each.teach.remote(task, threads)] = (each, task)
        if time.monotonic() - asked >= NEWS_S:
            _ask(pools)
            moved(sum(sum(p.computed.values()) for p in pools))
            asked = time.monotonic()
        if sum(p.size for p in pools) < slots:
            slowest = max(pools, key=Pool.left)
            if slowest.left() > WORTH_S and not slowest.starting:
                log.info("one more actor for %s, with %d shards to begin", slowest.label, len(slowest.todo))
                slowest.grow()
        wanted = [ref for p in pools for ref in (*p.starting, *p.busy)]
        found, _ = ray.wait(wanted, num_returns=1, timeout=NEWS_S)
        if not found:
            continue
        (ref,) = found
        pool = next(p for p in pools if ref in p.starting or ref in p.busy)
        answer = ray.get(ref)
        if ref in pool.starting:
            pool.actors.append(pool.starting.pop(ref))
            pool.since = pool.since or time.monotonic()
            continue
        actor, task = pool.busy.pop(ref)
        pool.done += task.samples.rows
        pool.computed[actor] = max(pool.computed.get(actor, 0.0) - task.samples.rows, 0.0)
        taught(pool.label, *answer)
        if not (pool.todo or pool.busy):
            pool.end()


def _ask(pools: Sequence[Pool]) -> None:
    """Have all actors say how far they are; who does not answer at once may be dying, or have gone."""
    asked = {actor.computed.remote(): (pool, actor) for pool in pools for actor in pool.actors}
    answered = ray.wait(list(asked), num_returns=len(asked), timeout=0.5)[0] if asked else ()
    for ref in answered:
        pool, actor = asked[ref]
        try:
            pool.computed[actor] = ray.get(ref)
        except RayError:
            pool.computed.pop(actor, None)
