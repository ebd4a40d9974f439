"""A recognition run: pictures, teacher, its outputs, assistant, its outputs, students, scores.

What is there already is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pipeline.cache import manifest as manifests
from pipeline.cache import records, stamps
from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.cache.mending import mends
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.progress import Once, Reporter
from pipeline.recipe.reading import checked
from pipeline.recognition import pictures as picturing
from pipeline.recognition import teach as teaching
from pipeline.recognition.jobs import RecognitionJob, job_fingerprint
from pipeline.recognition.networks import build, load_weights
from pipeline.recognition.recipe import HORKD, METHODS, Network, Recognition
from pipeline.recognition.score import Scored, ScoreTask
from pipeline.recognition.teach import OutputTask, Source
from pipeline.road.engines import Engine
from pipeline.road.tracked import Tracked
from pipeline.steps.teach import STATS, read_stats
from pipeline.steps.weights import pack
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
class Data:
    """The pictures in the cache."""

    splits: dict[str, Manifest]
    classes: tuple[str, ...]

    def path(self, split: str) -> str:
        """Where the split's manifest lies."""
        return manifest_path(self.splits[split].inputs["folder"], self.splits[split])


@dataclass(frozen=True, slots=True)
class Helper:
    """A network at HR whose outputs are cached: teacher or assistant."""

    source: Source
    outputs: str | None
    """Manifest of its outputs for the training pictures; None where they are made online."""
    seconds: float = 0.0
    job: RecognitionJob | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    recipe: Recognition
    data: Data
    teacher: Helper
    assistant: Helper | None
    jobs: list[RecognitionJob]
    scores: dict[str, Scored]
    """By label; `teacher` and `assistant` are at HR."""
    sets: list[str] = field(default_factory=list)


def manifest_path(folder: str, manifest: Manifest) -> str:
    """Where a manifest lies."""
    return f"{folder}/manifest-{manifest.fingerprint}.json"


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
        build(recipe.teacher.network, recipe.hr_size, 2, segment=segment)
        for gap in recipe.gaps:
            build(recipe.student, recipe.input_size(gap), 2, segment=segment)

    @mends
    def everything(self, methods: Sequence[str], seeds: Sequence[int]) -> Outcome:
        """The whole run."""
        self.check(methods)
        data, teacher, helpers = self.teach(methods)
        jobs = [
            self._student_job(data, teacher, helpers.get(method), method, gap, seed)
            for gap in self.recipe.gaps
            for method in methods
            for seed in seeds
        ]
        self._train(jobs)
        assistant = next(iter(helpers.values()), None)
        scores = self._score(data, teacher, assistant, jobs)
        return Outcome(self.recipe, data, teacher, assistant, jobs, scores, [_set_name(self.recipe)])

    @mends
    def teach(self, methods: Sequence[str]) -> tuple[Data, Helper, dict[str, Helper]]:
        """Pictures, the teacher and its outputs, and HORKD's assistant and its outputs, all where they are missing."""
        with self.store.lock("building.lock", on_wait=self._building):
            data = self.pictures()
            weights, identity, job = self._teacher_weights(data)
            recipe = self.recipe
            source = teaching.source_of(
                recipe, "teacher", recipe.teacher.network, len(data.classes), weights, identity
            )
            wanted = any(m != "scratch" for m in methods) and not recipe.cache.online
            teacher = self._outputs(source, data, job) if wanted else Helper(source, None, job=job)
            helpers: dict[str, Helper] = {}
            for method in methods:
                chosen = with_method(recipe, method)
                if isinstance(chosen.method, HORKD) and chosen.method.assistant:
                    helpers[method] = self._assistant(chosen, method, data, teacher, helpers.values())
        return data, teacher, helpers

    @mends
    def prepare(self, method: str, gap: int, seed: int) -> RecognitionJob:
        """The training of one student; what it learns from is made where it is missing. Raises InputError."""
        self.check([method])
        if method == "scratch":  # needs no teacher
            with self.store.lock("building.lock", on_wait=self._building):
                data = self.pictures()
            return self._job(with_method(self.recipe, method), "student", data, gap, seed, {}, {}, method)
        data, teacher, helpers = self.teach([method])
        return self._student_job(data, teacher, helpers.get(method), method, gap, seed)

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
        splits = {name: self._save(plan.folder, plan.manifest(name, receipts)) for name in picturing.SPLITS}
        return Data(splits, plan.classes)

    def _save(self, folder: str, manifest: Manifest) -> Manifest:
        return manifests.keep(manifest, self.store, manifest_path(folder, manifest))

    def _teacher_weights(self, data: Data) -> tuple[str, str, RecognitionJob | None]:
        """(weights in the cache, identity, its training)."""
        recipe = self.recipe
        if recipe.teacher.checkpoint is None:
            job = self._job(recipe, "teacher", data, 1, recipe.seed, {}, {})
            self._train([job])
            return f"{job.folder}/weights.safetensors", job.fingerprint, job
        return (*self._imported(recipe.teacher.checkpoint, recipe.teacher.network, len(data.classes)), None)

    def _imported(self, file: str, network: Network, classes: int) -> tuple[str, str]:
        """A checkpoint's tensors, copied into the cache after a look whether they fit."""
        segment = self.recipe.task == "segmentation"
        net = load_weights(build(network, self.recipe.hr_size, classes, segment=segment), file)
        digest = file_sha256(file)[:16]
        rel = f"networks/checkpoint-{digest}/weights.safetensors"
        folder = f"networks/checkpoint-{digest}"
        if not stamps.intact(self.store, f"{folder}/stamp.json", digest):
            self.store.write_bytes(rel, pack(net.state_dict()))
            stamps.put(self.store, f"{folder}/stamp.json", digest, [rel])
        return rel, digest

    def _outputs(self, source: Source, data: Data, job: RecognitionJob | None) -> Helper:
        """The network's outputs for the training pictures, shard by shard, those alone that are missing."""
        recipe, train = self.recipe, data.splits["train"]
        folder = source.folder(train, recipe.data.views, recipe.cache.features)
        done = manifests.committed(self.store, folder, STATS)
        todo = [r for r in train.shards if r.key not in done]
        self.shards_written += len(todo)
        self.shards_reused += len(train.shards) - len(todo)
        if todo:
            self.tracked.begin()
            views = recipe.data.views.model_dump()
            tasks = [
                OutputTask(
                    self.store.uri, r, folder, source, views, recipe.cache.features, recipe.teacher.batch
                )
                for r in todo
            ]
            with self.reporter.line(f"teach {source.role}", sum(r.rows for r in todo), "pictures") as line:
                for receipt in self.engine.map(_teach, tasks, gpus=recipe.teacher.gpus):
                    done[receipt.key] = receipt
                    line.advance(receipt.rows)
        manifest = self._save(folder, teaching.manifest(source, folder, train, done))
        stats = read_stats(self.store, folder, [r.key for r in train.shards])
        seconds = sum(s["seconds"] for s in stats)
        return Helper(source, manifest_path(folder, manifest), seconds, job)

    def _assistant(
        self, recipe: Recognition, method: str, data: Data, teacher: Helper, others: Iterable[Helper]
    ) -> Helper:
        """The method's assistant. One unlike the first has a label of its own: the first's is a row of the table."""
        outputs = {"teacher": teacher.outputs} if teacher.outputs else {}
        job = self._job(recipe, "assistant", data, 1, recipe.seed, outputs, {"teacher": teacher.source})
        first = next((helper.job for helper in others if helper.job), job)
        if first.fingerprint != job.fingerprint:
            job = replace(job, label=f"{job.label}-{method}")
        self._train([job])
        return self._outputs(job.source(), data, job)

    def _student_job(
        self, data: Data, teacher: Helper, assistant: Helper | None, method: str, gap: int, seed: int
    ) -> RecognitionJob:
        recipe = with_method(self.recipe, method)
        outputs, sources = {}, {}
        for name, helper in (("teacher", teacher), ("assistant", assistant)):
            if helper is not None and method != "scratch":
                sources[name] = helper.source
                if helper.outputs:
                    outputs[name] = helper.outputs
        return self._job(recipe, "student", data, gap, seed, outputs, sources, method)

    def _job(
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

    def _train(self, jobs: Sequence[RecognitionJob]) -> None:
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
        self, data: Data, teacher: Helper, assistant: Helper | None, jobs: Sequence[RecognitionJob]
    ) -> dict[str, Scored]:
        """Every network on the test pictures; what was scored before is read."""
        tasks = []
        helpers = {"teacher": teacher} | ({"assistant": assistant} if assistant else {})
        for role, helper in helpers.items():
            tasks.append(
                ScoreTask(
                    role,
                    located(self.recipe).model_dump(mode="json"),
                    1,
                    helper.source,
                    self.store.uri,
                    data.path("test"),
                )
            )
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


def _teach(task: OutputTask, device: str) -> Receipt:
    return task.run(device)


def _scored(task: ScoreTask, device: str) -> Scored:
    return task.run(device)
