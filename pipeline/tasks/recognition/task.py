"""What the tasks of recognition share: pictures with labels, networks at HR that are trained or given, a student at LR.

A task of this kind says its figures, its loss, how a network is scored on it and what is drawn of it; where its answers
are other than logits of classes, also how many there are, how one is imitated, and how several are averaged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cache.manifest import Manifest
from pipeline.cost import multiply_adds
from pipeline.errors import FacultyError
from pipeline.losses.mixed import SHARE, mixed_entropy, partner
from pipeline.losses.soft_labels import soft_labels
from pipeline.recipe.recipe import Teach
from pipeline.recipe.recognition_methods import HORKD
from pipeline.report.extra import Extra
from pipeline.report.table import Metric
from pipeline.steps.forecast import Effort, Work
from pipeline.steps.job import STUDENT, Job
from pipeline.steps.planner import Planner
from pipeline.steps.rerun import Kept
from pipeline.steps.values import Column, Needs, Outcome, Outputs, Prepared, Result, Samples
from pipeline.tasks.base import Drawing, Task
from pipeline.tasks.recognition import networks, pictures
from pipeline.tasks.recognition import work as counting
from pipeline.tasks.recognition.candidates import CANDIDATES
from pipeline.tasks.recognition.ensemble import soft_mean
from pipeline.tasks.recognition.export import export_recogniser
from pipeline.tasks.recognition.fusion import FUSED, fits, fuse
from pipeline.tasks.recognition.jobs import RecognitionJob, make_job
from pipeline.tasks.recognition.recipe import Network, Recognition, TaskLoss
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.scoring import results, under_others
from pipeline.tasks.recognition.showing import costs, facts, intervals_of, sentence, shown_curves, summary
from pipeline.tasks.recognition.teach import OutputTask, Source, manifest
from pipeline.tasks.recognition.teachers import (
    chosen,
    fitting,
    imported,
    label_of,
    learned_from,
    set_name,
    teacher_job,
)

if TYPE_CHECKING:
    from pipeline.road.run import Run


class RecognitionTask(Task):
    """Answers about pictures, from LR."""

    recipe: ClassVar[type[Recognition]] = Recognition
    unit = made = "pictures"
    gap = "gap"
    figures: ClassVar[tuple[Metric, ...]]
    """What the table shows; the first is the one that charts and gains speak of."""
    truth: ClassVar[str] = "label"
    """The column of a batch that the loss compares with."""
    asks: ClassVar[str] = "logits"
    """The output that figures are made from; a teacher without it is judged by its embedding."""
    logits: ClassVar[str] = "(batch, classes)"
    """What a student's page says of its answers."""

    # --- what one of them says

    @abstractmethod
    def scores(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """(metrics, curves for `drawings`) of a network in eval mode on a split."""

    def scores_at_the_end(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The same for table and report: with 95 % intervals (`<metric>_low`, `<metric>_high`), which take long."""
        return self.scores(model, gallery, recipe, gap, device)

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], settings: TaskLoss) -> Tensor:
        """Cross-entropy in float32; of mixed pictures with the labels of both."""
        logits, truth = outputs["logits"].float(), batch[self.truth]
        if SHARE in batch:
            return mixed_entropy(logits, truth, batch[partner(self.truth)], batch[SHARE], settings.smoothing)
        return F.cross_entropy(logits, truth, label_smoothing=settings.smoothing)

    def answers(self, classes: Sequence[str]) -> int:
        """How many logits a network has."""
        return len(classes)

    def imitate(self, own: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far the student's logits are from the teacher's: tau^2 KL of soft labels."""
        return soft_labels(own, teacher, temperature)

    def mean_of(self, logits: Sequence[Tensor], shares: Tensor, temperature: float) -> Tensor:
        """Logits of several networks as one's; `shares` (K, C): the mean of their soft labels."""
        return soft_mean(logits, shares, temperature)

    def build(
        self, network: Network, size: tuple[int, int], classes: int, *, pretrained: bool = False
    ) -> networks.Recogniser:
        """The untrained network for pictures of `size` (height, width). Raises InputError."""
        return networks.build(network, size, classes, pretrained=pretrained)

    # --- the rest is the same for all

    def check(self, run: Run, methods: Sequence[str]) -> None:
        recipe: Recognition = run.recipe
        for teacher in recipe.seen_by:
            self.build(teacher.network, recipe.hr_size, 2)
        for reason in recipe.left_out.values():
            run.reporter.warn(f"compare.gaps: left out: {reason}")
        for gap in recipe.trained_gaps:
            self.build(recipe.student, recipe.input_size(gap), 2)

    def reads(self, recipe: Recognition) -> list[tuple[str, str]]:
        where = "teachers.{}" if recipe.teachers else "teacher"
        named = [(f"{where.format(i)}.checkpoint", spec.checkpoint) for i, spec in enumerate(recipe.seen_by)]
        return [(key, path) for key, path in [("data.root", recipe.data.root), *named] if path]

    def gaps(self, recipe: Recognition) -> Sequence[int]:
        return recipe.trained_gaps

    def compared(self, recipe: Recognition) -> list[str]:
        return list(recipe.known_methods)

    def samples(self, planner: Planner) -> pictures.Plan:
        plan = pictures.plan(planner.recipe, planner.store)
        for reason in plan.left_out:
            planner.reporter.warn(reason)
        return plan

    def needs(self, recipe: Recognition, methods: Sequence[str], scored: bool) -> Needs:
        learning = any(m != "scratch" for m in methods)
        several = len(recipe.seen_by) > 1
        joined = fits(recipe) or (several and recipe.fusion.embeddings != "concatenate")
        teachers = scored or learning
        return Needs(teachers, teachers and ((learning and not recipe.cache.online) or joined), several)

    def actors(self, recipe: Recognition) -> Teach:
        given = [teacher.gpus for teacher in recipe.seen_by if teacher.gpus != "auto"]
        return Teach(**recipe.teach.model_dump(), gpus_per_actor=max(given, default="auto"))

    def splits(self, recipe: Recognition, samples: Samples) -> Sequence[str]:
        return ("train", "val") if fits(recipe) else ("train",)

    def teacher_jobs(self, recipe: Recognition, samples: Samples) -> list[Job | None]:
        return [teacher_job(self, recipe, spec, samples) for spec in recipe.seen_by]

    def teachers(
        self, planner: Planner, samples: Samples, jobs: Sequence[Job | None]
    ) -> list[tuple[str, Source]]:
        recipe: Recognition = planner.recipe
        found = []
        for spec, job in zip(recipe.seen_by, jobs):
            if isinstance(job, RecognitionJob):
                source = job.source()
            else:
                source = imported(self, recipe, spec, samples, planner.store)
            found.append((label_of(recipe, spec), source))
        return found

    def column(self, planner: Planner, samples: Samples, label: str, network: Source) -> Column:
        recipe: Recognition = planner.recipe
        views, features = recipe.data.views, recipe.cache.features
        folder = network.folder(samples.train, views, features)
        specs = {label_of(recipe, spec): spec for spec in recipe.seen_by}
        batch = specs.get(label, recipe.seen_by[0]).batch
        rest = (folder, network, views.model_dump(), features, batch)
        store = planner.store.uri

        def outputs(split: Manifest, receipts: Mapping[str, Any]) -> Manifest:
            return manifest(network, folder, split, receipts)

        return Column(label, folder, lambda receipt: OutputTask(store, receipt, *rest), outputs)

    def kept(self, planner: Planner) -> list[Kept]:
        plan = pictures.plan(planner.recipe, planner.store)
        if plan.steps:
            raise FacultyError("the recipe's pictures are not all in this cache")
        samples = plan.samples(plan.kept, lambda folder, found: found)
        jobs = self.teacher_jobs(planner.recipe, samples)
        if untrained := [job.label for job in jobs if job is not None and job.result() is None]:
            raise FacultyError(f"{untrained[0]} is not trained yet")
        return [
            Kept(label, source, [(samples.folder, self.column(planner, samples, label, source))])
            for label, source in self.teachers(planner, samples, jobs)
        ]

    def fusion(
        self, run: Run, samples: Samples, members: Sequence[Outputs]
    ) -> tuple[str, Source, Column | None]:
        return FUSED, *fuse(self, run.planner, samples, members)

    def helper(self, recipe: Recognition, method: str, prepared: Prepared) -> Job | None:
        """HORKD's assistant, which learns at HR from the teacher. Raises InputError for a teacher that does not fit."""
        if recipe.method.name != "scratch":
            fitting(recipe, method, chosen(recipe, prepared))
        if not isinstance(recipe.method, HORKD) or not recipe.method.assistant:
            return None
        outputs, sources = learned_from(recipe, {"teacher": chosen(recipe, prepared)})
        return make_job(self, recipe, "assistant", prepared.samples, 1, recipe.seed, outputs, sources)

    def helper_outputs(self, recipe: Recognition, job: Job) -> Source:
        assert isinstance(job, RecognitionJob)
        return job.source()

    def student(
        self, recipe: Recognition, prepared: Prepared, method: str, gap: int, seed: int
    ) -> RecognitionJob:
        helpers: dict[str, Outputs] = {}
        if recipe.method.name != "scratch":
            helpers["teacher"] = chosen(recipe, prepared)
            if (assistant := prepared.helpers.get(method)) is not None:
                helpers["assistant"] = assistant
        outputs, sources = learned_from(recipe, helpers)
        return make_job(self, recipe, STUDENT, prepared.samples, gap, seed, outputs, sources, method)

    def score(self, run: Run, prepared: Prepared, jobs: Sequence[Job]) -> tuple[list[Result], list[str], Any]:
        name = set_name(run.recipe)
        return results(self, run, prepared, jobs, name), [name], None

    def metrics(self, recipe: Recognition) -> tuple[Metric, ...]:
        return (*self.figures, *under_others(self.figures[0], recipe))

    def export(
        self, run: Run, outcome: Outcome, job: Job, raw: Path, out: Path
    ) -> tuple[dict[str, str], dict[str, str]]:
        (set_name,), scores = outcome.sets, outcome.of(job).sets
        classes = (
            () if outcome.recipe.identities or outcome.recipe.masks else outcome.prepared.samples.classes
        )
        made, missing = export_recogniser(self, raw, out, set_name, scores[set_name], classes)
        return {kind: path.name for kind, path in made.items()}, missing

    def sentence(self, outcome: Outcome) -> str:
        return f"{self.name.capitalize()}: {sentence(outcome)}"

    def facts(self, outcome: Outcome) -> dict[str, str]:
        return facts(outcome)

    def drawings(self, run: Run, outcome: Outcome) -> dict[str, Drawing]:
        """What the task has to show, of each teacher and one seed of each method at the recipe's own gap, by name."""
        return self.drawn(run, outcome, shown_curves(outcome))

    def drawn(self, run: Run, outcome: Outcome, curves: Mapping[str, Any]) -> dict[str, Drawing]:
        """Drawings of the curves of `scores`, by row."""
        return {}

    def tables(self, outcome: Outcome) -> list[Extra]:
        """Each figure with its interval over the test pictures, and with its spread over seeds."""
        return intervals_of(outcome, self.figures)

    def teach_row(self, recipe: Recognition, outputs: Outputs) -> dict[str, Any]:
        views = recipe.data.views.count
        return {"pictures": outputs.rows, "views": views, "seconds": round(outputs.seconds, 2)}

    def compare_row(self, outcome: Outcome, result: Result) -> dict[str, Any]:
        assert result.job is not None
        return {"gap": result.job.gap, **costs(result)}

    def summary(
        self, outcome: Outcome, rows: list[dict[str, Any]], students: Mapping[str, Any]
    ) -> dict[str, Any]:
        return summary(outcome, rows, students)

    def teacher_costs(self, recipe: Recognition) -> list[int]:
        return counting.teacher_costs(self, recipe)

    def work(
        self, recipe: Recognition, pictures: int, height: int, width: int, teachers: Sequence[int]
    ) -> Work:
        return counting.work(self, recipe, pictures, height, width, teachers)

    # --- for a search

    def effort(self, recipe: Recognition, prepared: Prepared) -> Effort:
        return counting.effort(self, recipe, prepared)

    def candidates(self, recipe: Recognition) -> Mapping[str, Mapping[str, Any]]:
        return CANDIDATES

    def own(self, recipe: Recognition, path: str, choices: Sequence[Any]) -> Any:
        return None if path != "gap" else next((gap for gap in recipe.gaps if gap in choices), None)

    def single(self, recipe: Recognition) -> Recognition:
        compare = recipe.compare.model_copy(update={"gaps": ()})
        return recipe.model_copy(update={"gap": recipe.gaps[0], "compare": compare})

    def cost(self, job: Job) -> int:
        assert isinstance(job, RecognitionJob)
        return multiply_adds(job.build(), (1, 3, *job.size))
