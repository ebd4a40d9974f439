"""A recognition run: pictures, teacher, its outputs, assistant, its outputs, students, scores.

What is there already is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from pipeline.cache import manifest as manifests
from pipeline.cache import records
from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.cache.mending import mends
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.progress import Once, Reporter
from pipeline.recipe.reading import checked
from pipeline.recipe.recognition import HORKD, METHODS, Recognition
from pipeline.report.table import Role
from pipeline.road.engines import Engine
from pipeline.road.tracked import Tracked
from pipeline.tasks.recognition import pictures as picturing
from pipeline.tasks.recognition.jobs import RecognitionJob, job_fingerprint
from pipeline.tasks.recognition.networks import build
from pipeline.tasks.recognition.score import Scored, ScoreTask
from pipeline.tasks.recognition.teach import Source
from pipeline.tasks.recognition.teachers import Data, Helper, Teachers, chosen, manifest_path
from pipeline.tracking import RunTracker


def with_method(recipe: Recognition, method: str) -> Recognition:
    """The same recipe with another method: its own settings where it is the recipe's, else `compare.settings`; or with
    the variant of that name.

    Raises InputError for an unknown name.
    """
    if method == recipe.method.name:
        return recipe
    if (variant := recipe.compare.variants.get(method)) is not None:
        settings = variant.model_dump(mode="json")
    elif method in METHODS:
        settings = {**recipe.compare.settings.get(method, {}), "name": method}  # type: ignore[call-overload]
    else:
        raise InputError("method", f"one of {', '.join([*METHODS, *recipe.compare.variants])}", repr(method))
    return checked(Recognition, {**recipe.model_dump(mode="json"), "method": settings}, f"method {method}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    recipe: Recognition
    data: Data
    teachers: list[Helper]
    """The networks that see HR; where there are several, what they are together is the last."""
    assistant: Helper | None
    jobs: list[RecognitionJob]
    scores: dict[str, Scored]
    """By label; teachers and assistant are at HR."""
    sets: list[str] = field(default_factory=list)

    @property
    def roles(self) -> dict[str, Role]:
        """Of the networks at HR, by label."""
        helpers = [*self.teachers, *([self.assistant] if self.assistant else [])]
        return {helper.label: cast(Role, helper.role) for helper in helpers}


class RecognitionRun:
    """One recipe on one engine."""

    def __init__(
        self,
        recipe: Recognition,
        engine: Engine,
        reporter: Reporter,
        open_run: Callable[[], RunTracker] | None = None,
    ) -> None:
        self.recipe, self.engine, self.reporter = recipe, engine, Once(reporter)
        self.tracked = Tracked(open_run)
        self.store = Store.open(recipe.cache.root)
        self.output = Store.open(f"{recipe.output}/{recipe.name}")
        self.stores = (self.store, self.output)
        self.shards_written = 0
        self.shards_reused = 0

    def check(self, methods: Sequence[str]) -> None:
        """Refuse what cannot work before anything is started. Raises InputError."""
        recipe = self.recipe
        segment = recipe.task == "segmentation"
        for method in methods:
            with_method(recipe, method)
        for teacher in recipe.seen_by:
            build(teacher.network, recipe.hr_size, 2, segment=segment)
        for gap in recipe.gaps:
            build(recipe.student, recipe.input_size(gap), 2, segment=segment)

    @mends
    def everything(self, methods: Sequence[str], seeds: Sequence[int]) -> Outcome:
        """The whole run."""
        self.check(methods)
        data, teachers, helpers = self.teach(methods)
        jobs = [
            self._student_job(data, teachers, helpers.get(method), method, gap, seed)
            for gap in self.recipe.gaps
            for method in methods
            for seed in seeds
        ]
        self.train(jobs)
        assistant = next(iter(helpers.values()), None)
        scores = self._score(data, [*teachers, *([assistant] if assistant else [])], jobs)
        return Outcome(self.recipe, data, teachers, assistant, jobs, scores, [_set_name(self.recipe)])

    @mends
    def teach(self, methods: Sequence[str]) -> tuple[Data, list[Helper], dict[str, Helper]]:
        """Pictures, the networks that see HR (fused last, where there are several), HORKD's assistants by method, and
        their outputs, all where they are missing."""
        with self.store.lock("building.lock", on_wait=self._building):
            data = self.pictures()
            staff = Teachers(self, data)
            wanted = any(m != "scratch" for m in methods) and not self.recipe.cache.online
            teachers = staff.all(wanted)
            helpers: dict[str, Helper] = {}
            for method in methods:
                chosen = with_method(self.recipe, method)
                if isinstance(chosen.method, HORKD) and chosen.method.assistant:
                    helpers[method] = staff.assistant(chosen, method, teachers, helpers.values())
        return data, teachers, helpers

    @mends
    def prepare(self, method: str, gap: int, seed: int) -> RecognitionJob:
        """The training of one student; what it learns from is made where it is missing. Raises InputError."""
        self.check([method])
        if method == "scratch":  # needs no teacher
            with self.store.lock("building.lock", on_wait=self._building):
                data = self.pictures()
            return self.job(with_method(self.recipe, method), "student", data, gap, seed, {}, {}, method)
        data, teachers, helpers = self.teach([method])
        return self._student_job(data, teachers, helpers.get(method), method, gap, seed)

    def pictures(self) -> Data:
        """Decode the recipe's pictures into shards."""
        plan = picturing.plan(self.recipe, self.store)
        for reason in plan.left_out:
            self.reporter.warn(reason)
        receipts = dict(plan.kept)
        if plan.tasks:
            self.tracked.begin()
            with self.reporter.line("pictures", len(plan.tasks), "shards") as line:
                for receipt in self.engine.map(_decode, plan.tasks):
                    receipts[receipt.key] = receipt
                    line.advance()
        splits = {name: self.save(plan.folder, plan.manifest(name, receipts)) for name in picturing.SPLITS}
        return Data(splits, plan.classes)

    def save(self, folder: str, manifest: Manifest) -> Manifest:
        return manifests.keep(manifest, self.store, manifest_path(folder, manifest))

    def _student_job(
        self,
        data: Data,
        teachers: Sequence[Helper],
        assistant: Helper | None,
        method: str,
        gap: int,
        seed: int,
    ) -> RecognitionJob:
        recipe = with_method(self.recipe, method)
        outputs, sources = {}, {}
        teacher = chosen(recipe, teachers)
        for name, helper in (("teacher", teacher), ("assistant", assistant)):
            if helper is not None and method != "scratch":
                sources[name] = helper.source
                if helper.outputs:
                    outputs[name] = helper.outputs
        return self.job(recipe, "student", data, gap, seed, outputs, sources, method)

    def job(
        self,
        recipe: Recognition,
        role: str,
        data: Data,
        gap: int,
        seed: int,
        outputs: dict[str, str],
        sources: dict[str, Source],
        method: str = "",
    ) -> RecognitionJob:
        inputs = {"pictures": data.path("train"), **outputs}
        inputs |= {f"{name} network": source.identity for name, source in sources.items()}
        print_ = job_fingerprint(recipe, role, gap, seed, inputs)
        label = role
        if role == "student":
            label = f"{method}-{recipe.student.label}-x{gap}-s{seed}"
        folder = f"trainings/{label}-{print_}" if role == "student" else f"networks/{role}-{print_}"
        return RecognitionJob(
            label=label,
            role=role,
            method=method or role,
            recipe=located(recipe).model_dump(mode="json"),
            gap=gap,
            seed=seed,
            classes=len(data.classes),
            pictures={name: data.path(name) for name in ("train", "val")},
            outputs=outputs,
            sources=sources,
            folder=folder,
            fingerprint=print_,
        )

    def train(self, jobs: Sequence[RecognitionJob]) -> None:
        """Train what has no result yet. One command at a time trains a job; a second waits and finds it done."""
        with ExitStack() as stack:
            todo = [job for job in jobs if job.result() is None]
            for job in sorted(todo, key=lambda j: j.folder):
                stack.enter_context(
                    job.output().lock("training.lock", on_wait=partial(self._training, job.label))
                )
            todo = [job for job in todo if job.result() is None]
            if not todo:
                return
            self.tracked.begin()
            records = self.tracked.trainings
            records.update({job.label: self.tracked.child(job.label, _params(job)) for job in todo})
            lines = {
                job.label: stack.enter_context(self.reporter.line(job.label, job.settings.steps, "steps"))
                for job in todo
            }
            self.engine.train(todo, lines, {job.label: records[job.label].handle() for job in todo})

    def _score(
        self, data: Data, helpers: Sequence[Helper], jobs: Sequence[RecognitionJob]
    ) -> dict[str, Scored]:
        """Every network on the test pictures; what was scored before is read."""
        tasks = []
        for helper in helpers:
            recipe = located(self.recipe).model_dump(mode="json")
            tasks.append(ScoreTask(helper.label, recipe, 1, helper.source, self.store.uri, data.path("test")))
        for job in jobs:
            tasks.append(
                ScoreTask(job.label, job.recipe, job.gap, job.source(), self.output.uri, data.path("test"))
            )
        found = {}
        missing = []
        for task in tasks:
            rel = f"scores/{task.identity}.json"
            known = records.load(self.output, rel, lambda value: Scored(**value))
            if known is not None:
                found[task.label] = known
            else:
                missing.append(task)
        if missing:
            self.tracked.begin()
            with self.reporter.line("evaluate", len(missing), "networks") as line:
                for scored in self.engine.map(_scored, missing, gpus=self.recipe.teacher.gpus):
                    found[scored.label] = scored
                    records.save(self.output, f"scores/{scored.identity}.json", scored.plain())
                    line.advance(note=scored.label)
        return {task.label: found[task.label] for task in tasks}

    def _building(self, owner: str) -> None:
        self.reporter.say(f"cache {self.store.uri} is being built by {owner}; waiting for it")

    def _training(self, label: str, owner: str) -> None:
        self.reporter.say(f"{label} is being trained by {owner}; waiting for it")


def located(recipe: Recognition) -> Recognition:
    """The recipe with cache and output as URIs: a worker may run in a folder of its own."""
    cache = recipe.cache.model_copy(update={"root": Store.open(recipe.cache.root).uri})
    return recipe.model_copy(update={"cache": cache, "output": Store.open(recipe.output).uri})


def _set_name(recipe: Recognition) -> str:
    if recipe.data.layout == "digits":
        return "digits"
    parts = [p for p in recipe.data.root.rstrip("/").split("/") if p]
    return parts[-1].removesuffix(".npz") if parts else recipe.data.layout


def set_name(recipe: Recognition) -> str:
    """How tables call the test set: after the data's folder or file."""
    return _set_name(recipe)


def _params(job: RecognitionJob) -> dict[str, Any]:
    dump = job.recipe
    shown = {k: dump[k] for k in ("task", "method", "student", "train", "input", "loss", "sampling")}
    if job.role == "teacher":
        shown = {"task": dump["task"], "teacher": dump["teacher"]}
    return {**shown, "gap": job.gap, "seed": job.seed, "fingerprint": job.fingerprint}


def _decode(task: picturing.PictureTask, device: str) -> Receipt:
    return task.run(device)


def _scored(task: ScoreTask, device: str) -> Scored:
    return task.run(device)
