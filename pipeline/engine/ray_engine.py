"""The engine over Ray. Ray starts with the first work there is, so a run with nothing to do never starts it."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.engine import distill, session, teach, together
from pipeline.engine.shares import share, shared_out
from pipeline.errors import FacultyError
from pipeline.progress import Line
from pipeline.recipe.recipe import Teach
from pipeline.recipe.settings import Gpus
from pipeline.steps.engines import Taught
from pipeline.steps.job import Job
from pipeline.steps.values import Network, OutputStep

MISSING = re.compile(r"No module named '([\w.]+)'")
T = TypeVar("T")
R = TypeVar("R")


@ray.remote
def call(function: Callable[[Any, str], Any], item: Any) -> Any:
    """One item of a map, on the device that Ray gave this task; what it held of a GPU is free for others then."""
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    try:
        return function(item, device)
    finally:
        if device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


class RayEngine:
    """Tasks, actors and Ray Train workers, on this machine or on the cluster at `address`."""

    name = "ray"

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self.dashboard = False
        """Whether a Ray started here has one (`session.start`)."""
        self._starter: ThreadPoolExecutor | None = None
        self._starting: Future[None] | None = None

    def warm(self) -> None:
        """Start Ray in the background."""
        if self._starting is None:
            # The thread lives until `close`: a local Ray's processes end with the thread that started them.
            self._starter = ThreadPoolExecutor(1)
            self._starting = self._starter.submit(session.start, self.address, dashboard=self.dashboard)

    def _start(self) -> None:
        """Wait for Ray, started before or now. Raises FacultyError where the address does not answer."""
        if self._starting is not None:
            self._starting.result()
        session.start(self.address, dashboard=self.dashboard)

    def gpus(self) -> float:
        """GPUs of the cluster, those included that it adds for work that waits.

        A local Ray is not started for the answer, a cluster is joined.
        """
        if not ray.is_initialized() and not (self.address or os.environ.get("RAY_ADDRESS")):
            return float(torch.cuda.device_count())
        self._start()
        return session.most("GPU")

    def device_kind(self, gpus: Gpus) -> str:
        return "cuda" if share(gpus, self.gpus() if gpus == "auto" else 0.0, 1) else "cpu"

    def abreast(self, gpus: Gpus) -> int:
        self._start()
        have = ray.cluster_resources()
        fit = int(have.get("CPU", 1))
        if each := share(gpus, self.gpus(), fit):
            fit = min(fit, int((have.get("GPU", 0) + 1e-9) / each))
        return max(fit, 1)

    def devices(self) -> str:
        self._start()
        have = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        # Ray names what it found: accelerator_type:H100.
        kinds = ", ".join(
            sorted(name.partition(":")[2] for name in have if name.startswith("accelerator_type:"))
        )
        count = int(have.get("GPU", 0))
        gpus = f"{count} GPU{'s' * (count != 1)}{f' ({kinds})' if kinds else ''}" if count else "no GPU"
        where = f"{nodes} nodes, " if nodes > 1 else ""
        return f"{where}{int(have.get('CPU', 0))} CPU cores, {gpus}"

    def map(self, function: Callable[[T, str], R], items: Sequence[T], *, gpus: Gpus = 0.0) -> Iterator[R]:
        """Bounded: at most twice as many tasks are under way as the cluster has CPUs."""
        self._start()
        gpus = share(gpus, self.gpus(), len(items))
        session.require(self.address, "teach.gpus_per_actor or distill.gpus_per_worker", {"GPU": gpus})
        limit = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        task = call.options(num_cpus=1, num_gpus=gpus)
        waiting = list(reversed(items))
        running: set[Any] = set()
        with plain_errors():
            while waiting or running:
                while waiting and len(running) < limit:
                    running.add(task.remote(function, waiting.pop()))
                (done,), rest = ray.wait(list(running), num_returns=1)
                running = set(rest)
                yield ray.get(done)

    def teach(
        self,
        tasks: Mapping[str, tuple[Network, Sequence[OutputStep]]],
        settings: Teach,
        taught: Taught,
        moved: Callable[[float], None] = lambda samples: None,
    ) -> None:
        self._start()
        gpus = share(settings.gpus_per_actor, self.gpus(), len(tasks))
        settings = settings.model_copy(update={"gpus_per_actor": gpus})
        session.require(self.address, "an actor of `teach`", teach.needs(settings))
        with plain_errors():
            teach.run(tasks, settings, taught, moved)

    def train(
        self, jobs: Sequence[Job], lines: Mapping[str, Line], handles: Mapping[str, dict[str, Any]]
    ) -> None:
        self._start()
        asked, gpus = jobs[0].spec.distill, self.gpus()
        bundles = together.bundles(jobs, asked, gpus)
        settings = shared_out(asked, gpus, len(bundles))
        session.require(self.address, "the workers of `distill`", distill.needs(settings))
        distill.run(bundles, settings, lines, handles)

    def close(self) -> None:
        if self._starting is not None:
            wait([self._starting])  # a Ray that is half started cannot be left
        session.stop()
        if self._starter is not None:
            self._starter.shutdown()


class plain_errors:
    """Re-raise what a task raised, not Ray's wrapping of it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RayError) and (found := MISSING.search(str(error))):
            raise FacultyError(
                f"a node of the cluster has no package {found[1]}. Every node needs the same Faculty: put "
                "it into the image or environment in which its Ray starts, or send the sources with `faculty submit`."
            ) from error
        if isinstance(error, RayTaskError):
            raise error.cause from None
        if isinstance(error, RayActorError):
            if error.actor_init_failed:
                raise FacultyError(
                    f"a teacher does not load where Ray runs it: {distill.cause(error)}"
                ) from error
            raise FacultyError(
                f"a teacher's process died and was restarted too often: {distill.cause(error)}. Out of memory? Lower "
                "its batch or teach.actors; raise teach.max_restarts for unreliable machines. "
                "Committed shards are kept."
            ) from error
