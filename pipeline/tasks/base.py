"""What a task says, and nothing else does: its samples, its networks, how they are fused, trained and scored, and what
is shown of them. Planner, run, report, search and commands know tasks by these words alone.

Hooks get the `Planner` where they need what is cached or the engine, and the recipe of one method where it matters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.recipe.recipe import Teach
from pipeline.recipe.settings import Section
from pipeline.report.extra import Extra
from pipeline.report.table import Metric
from pipeline.steps.forecast import Effort, Work
from pipeline.steps.job import Job
from pipeline.steps.planner import Planner
from pipeline.steps.rerun import Kept
from pipeline.steps.values import (
    Column,
    Needs,
    Network,
    Outcome,
    Outputs,
    Prepared,
    Result,
    SamplePlan,
    Samples,
)
from pipeline.tracking import DataSet

if TYPE_CHECKING:
    from pipeline.road.run import Run

Drawing = tuple[str, np.ndarray]
"""(caption, (H, W, 3) uint8)."""
_CONTEXTS = {"train": "training", "test": "testing"}
"""What splits of the samples are for; others are looked at while students are trained."""


class Task(ABC):
    """A kind of work that students are distilled for."""

    name: ClassVar[str]
    recipe: ClassVar[type[Section]]
    """The settings, documented."""
    unit: ClassVar[str]
    """What samples are called on progress lines."""
    made: ClassVar[str]
    """What the line is called on which they are made."""
    report_version: ClassVar[int] = 1
    """Of what reports show; another one has them written anew."""
    same_input: ClassVar[bool] = False
    """Whether teachers see what the student sees, so that their rows may be compared."""
    gap: ClassVar[str]
    """The key of the recipe that says how much less the student sees than its teachers."""

    # --- before anything is started

    @abstractmethod
    def check(self, run: Run, methods: Sequence[str]) -> None:
        """Refuse what cannot work: a file, a network, a method's settings. Raises InputError."""

    def tested(self, run: Run) -> Any:
        """The test pictures, where they are read before the work begins. Raises InputError."""
        return None

    def look(self, run: Run, samples: Samples) -> None:
        """Warn of what is odd about the samples."""
        return None

    def reads(self, recipe: Any) -> list[tuple[str, str]]:
        """(key of the recipe, path) of everything that a run reads."""
        return []

    def gaps(self, recipe: Any) -> Sequence[int]:
        """The resolution gaps that a run trains students for."""
        return (1,)

    def compared(self, recipe: Any) -> list[str]:
        """Methods of `faculty compare` where none is named."""
        return list(dict.fromkeys([*recipe.compare.methods, recipe.method.name]))

    # --- what is cached

    @abstractmethod
    def samples(self, planner: Planner) -> SamplePlan:
        """The recipe's samples, and which shards of them are to be made. Raises InputError."""

    @abstractmethod
    def needs(self, recipe: Any, methods: Sequence[str], scored: bool) -> Needs:
        """What these methods need; `scored`: the table is to be filled too."""

    def actors(self, recipe: Any) -> Teach:
        """The processes that run networks."""
        return recipe.teach

    def splits(self, recipe: Any, samples: Samples) -> Sequence[str]:
        """Of the samples for which networks' outputs are cached, `train` first."""
        return ("train",)

    def teacher_jobs(self, recipe: Any, samples: Samples) -> list[Job | None]:
        """The trainings of the teachers, None for one whose weights are given."""
        return []

    @abstractmethod
    def teachers(
        self, planner: Planner, samples: Samples, jobs: Sequence[Job | None]
    ) -> Sequence[tuple[str, Network]]:
        """(label, network) of every teacher."""

    @abstractmethod
    def column(self, planner: Planner, samples: Samples, label: str, network: Any) -> Column:
        """Where a network's outputs lie, and how a shard of them is made."""

    @abstractmethod
    def kept(self, planner: Planner) -> list[Kept]:
        """Every teacher whose outputs the cache may hold, without making or training anything.

        Raises FacultyError where one is not known to the cache.
        """

    def quality(self, planner: Planner, outputs: Outputs) -> float:
        """By which the better of two networks is told, higher is better; from what is cached."""
        return float("nan")

    @abstractmethod
    def fusion(
        self, run: Run, samples: Samples, members: Sequence[Outputs]
    ) -> tuple[str, Any, Column | None]:
        """(label, network by value, column) of all teachers together; no column where nothing is cached."""

    def worse(self, run: Run, fused: Outputs, best: Outputs) -> None:
        """Warn that all teachers together are worse than the best of them alone."""
        return None

    # --- trainings

    def helper(self, recipe: Any, method: str, prepared: Prepared) -> Job | None:
        """What a method trains before its students, shared by them: an assistant, a teacher with privileges."""
        return None

    def helper_outputs(self, recipe: Any, job: Job) -> Network | None:
        """The helper as a network whose outputs are cached; None where students take its weights alone."""
        return None

    @abstractmethod
    def student(self, recipe: Any, prepared: Prepared, method: str, gap: int, seed: int) -> Job:
        """The training of one student by one method (or variant) from one seed. `recipe` is that method's."""

    # --- scores

    @abstractmethod
    def score(self, run: Run, prepared: Prepared, jobs: Sequence[Job]) -> tuple[list[Result], list[str], Any]:
        """(results, names of the test sets, anything for `drawings`); known scores are read."""

    @abstractmethod
    def metrics(self, recipe: Any) -> tuple[Metric, ...]:
        """What the table shows; the first is the one that charts, gains and searches speak of."""

    def metric(self, recipe: Any) -> Metric:
        """What a search compares trials by, higher is better; never on test pictures."""
        return self.metrics(recipe)[0]

    # --- for people and their tools

    @abstractmethod
    def export(
        self, run: Run, outcome: Outcome, job: Job, raw: Path, out: Path
    ) -> tuple[dict[str, str], Any]:
        """Write what a student leaves as into the folder `out`: ({kind: file name}, {kind that is missing: why})."""

    def exported(self, outcome: Outcome, job: Job) -> Any:
        """What an export depends on beside the training."""
        return outcome.of(job).sets

    @abstractmethod
    def sentence(self, outcome: Outcome) -> str:
        """The run in one sentence."""

    @abstractmethod
    def facts(self, outcome: Outcome) -> dict[str, str]:
        """What the report says of how it was made."""

    def drawings(self, run: Run, outcome: Outcome) -> dict[str, Drawing]:
        """Pictures for report and tracking, by name."""
        return {}

    def tables(self, outcome: Outcome) -> Sequence[Extra]:
        """What the report lists below its table."""
        return ()

    def inputs(self, run: Run, samples: Samples) -> list[DataSet]:
        """The data sets of a run and of its trainings in MLflow."""
        folder = run.planner.store.where(samples.folder)
        return [
            DataSet(f"{split} {self.unit}", m.fingerprint, folder, _CONTEXTS.get(split, "validation"), m.rows)
            for split, m in samples.splits()
        ]

    def tags(self, prepared: Prepared) -> dict[str, str]:
        """What identifies the run's inputs in MLflow."""
        networks = {o.label: str(o.network.identity) for o in prepared.all}
        return {self.made: prepared.samples.train.fingerprint, **networks}

    def teach_row(self, recipe: Any, outputs: Outputs) -> dict[str, Any]:
        """A network's row in what `faculty teach` prints."""
        return {self.unit: outputs.rows, "seconds": round(outputs.seconds, 2)}

    def compare_row(self, outcome: Outcome, result: Result) -> dict[str, Any]:
        """What a student's row of `compare` says beside method, student, seed, set and metrics."""
        return {}

    def summary(
        self, outcome: Outcome, rows: list[dict[str, Any]], students: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The run as JSON: its rows and students; `rows` are those of `compare`."""
        return {"task": self.name, "rows": rows, "students": students}

    # --- for `faculty plan` and a search

    @abstractmethod
    def teacher_costs(self, recipe: Any) -> list[int]:
        """Multiply-adds of the recipe's teachers for one sample (super-resolution: a 48 x 48 input)."""

    @abstractmethod
    def work(self, recipe: Any, pictures: int, height: int, width: int, teachers: Sequence[int]) -> Work:
        """What a recipe does to so many pictures, with teachers of these multiply-adds."""

    def effort(self, recipe: Any, prepared: Prepared) -> Effort:
        """Multiply-adds of the recipe's method, for comparisons of equal work. Raises InputError."""
        raise InputError(
            "compare.equal", f"steps for {self.name}, which does not say what a step costs", "another"
        )

    def comparable(self, recipe: Any, samples: Samples | None = None) -> None:
        """Raises InputError where there are no validation samples by which trials are compared."""
        return None

    def altered(self, recipe: Any, values: Mapping[str, Any], where: str) -> Any:
        """The recipe with other values at these paths. Raises InputError where it does not take them."""
        from pipeline.recipe.reading import changed

        return changed(recipe, values, where)

    def own(self, recipe: Any, path: str, choices: Sequence[Any]) -> Any:
        """The recipe's value at a path in the form that `choices` have, or None where that form is theirs already."""
        return None

    def candidates(self, recipe: Any) -> Mapping[str, Mapping[str, Any]]:
        """What `faculty run --auto` tries beside the recipe's own method: {name: {path of the recipe: value}}."""
        return {}

    def settled(self, recipe: Any) -> Any:
        """The recipe with that said which its method brings for all methods beside it."""
        return recipe

    def single(self, recipe: Any) -> Any:
        """The recipe for one training."""
        return recipe

    @abstractmethod
    def cost(self, job: Any) -> int:
        """Multiply-adds of the student for one input."""
