"""How much of a GPU everything gets where the recipe leaves that open (`auto`).

A network that has a GPU for itself is fastest: processes on one GPU take turns. So there is one process a GPU, more
only where there are more networks or trainings than GPUs, and at most `MOST`: others wait until these are done.
"""

from __future__ import annotations

import math
from typing import Literal

from pipeline.errors import InputError
from pipeline.recipe.recipe import Distill

MOST = 4
"""Processes on one GPU."""
DRIVER_CPUS = 0.1
"""Ray refuses a trial that asks for nothing."""


def share(setting: float | Literal["auto"], gpus: float, wanted: int, workers: int = 1) -> float:
    """GPUs for each of `wanted` processes where there are `gpus`; a number is taken as it is.

    Of `auto`: none where there is none; a whole one where it is one of several `workers` of one training.
    """
    if setting != "auto":
        return setting
    if gpus < 1:
        return 0.0
    if workers > 1:
        return 1.0
    return 1 / min(max(math.ceil(wanted / int(gpus)), 1), MOST)


def settled(setting: float | Literal["auto"]) -> float:
    """A setting that was shared out."""
    assert setting != "auto", "not shared out yet"
    return setting


def shared_out(settings: Distill, gpus: float, trainings: int) -> Distill:
    """The settings with a number of GPUs for each worker, of `gpus` in all."""
    most = settings.workers if isinstance(settings.workers, int) else settings.workers[1]
    each = share(settings.gpus_per_worker, gpus, trainings, most)
    return settings.model_copy(update={"gpus_per_worker": each})


def trials_at_once(
    settings: Distill, trials: int | None, resources: dict[str, float], in_halls: int = 0
) -> tuple[int, Distill]:
    """(trials at a time, worker settings) that fit these resources together.

    `trials` is the most that the user wants, `in_halls` for how many there is room in processes that trials share; what
    these need made first has the GPUs' shares and cores for itself. A worker's share includes its part of the driver's
    tenth. Raises InputError where not even one trial fits.
    """
    workers = settings.workers if isinstance(settings.workers, int) else settings.workers[1]
    least = settings.workers if isinstance(settings.workers, int) else settings.workers[0]
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    settings = shared_out(settings, gpus, trials or MOST * int(gpus))
    if in_halls:
        own = {"cpus_per_worker": min(1.0, cpus)} if settings.cpus_per_worker == "auto" else {}
        return min(trials or in_halls, in_halls), settings.model_copy(update=own)
    each = 1.0 if settings.cpus_per_worker == "auto" else settings.cpus_per_worker
    if settings.cpus_per_worker == "auto" and workers > cpus:
        each = cpus / workers
    each = max(each, 2 * DRIVER_CPUS / workers)
    fit = int((cpus + 1e-9) / (each * workers))
    of_gpu = settled(settings.gpus_per_worker)
    if of_gpu:
        fit = min(fit, int((gpus + 1e-9) / (of_gpu * workers)))
    if fit < 1 and least < workers:  # an elastic group makes do with fewer
        return 1, settings.model_copy(update={"cpus_per_worker": each - DRIVER_CPUS / least})
    if fit < 1:
        wanted = f"{workers} workers of {each:g} CPUs and {of_gpu:g} GPUs"
        raise InputError("distill", f"workers that fit {cpus:g} CPUs and {gpus:g} GPUs", wanted)
    abreast = min(fit, trials or fit)
    if settings.cpus_per_worker == "auto" and not of_gpu:
        each = max(each, float(int(cpus / abreast / workers)))
    return abreast, settings.model_copy(update={"cpus_per_worker": each - DRIVER_CPUS / workers})


def resources_of(settings: Distill, elsewhere: bool = False) -> dict[str, float]:
    """What Tune reserves for a trial: all of it where it trains in its own process, else what its driver needs."""
    if settings.workers != 1 or elsewhere:
        return {"cpu": DRIVER_CPUS}
    assert settings.cpus_per_worker != "auto"
    found = {"cpu": settings.cpus_per_worker + DRIVER_CPUS, **settings.resources}
    gpus = settled(settings.gpus_per_worker)
    return {**found, "gpu": gpus} if gpus else found
