"""Addresses of MLflow's pages on the newest run: its experiment, and its students side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pipeline.engine.store import Store, sorted_errors
from pipeline.steps.job import STUDENT
from pipeline.tracking import ROLE

PARENT = "mlflow.parentRunId"
MOST = 100
"""Runs that one comparison takes, at most; the page shows no more side by side."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Parts of addresses, to be appended to a server's."""

    run: str
    """The newest run's name."""
    experiment: str
    students: int
    comparison: str
    """Empty where the run has fewer than two students."""


def experiment_page(experiment: str) -> str:
    """The runs of an experiment in the view for training: without the last part MLflow 3.17 opens the one for language
    models, whatever the experiment's tags say.
    """
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning"


def comparison_page(experiment: str, runs: Sequence[str]) -> str:
    """Runs of one experiment side by side."""
    texts = (quote(json.dumps(list(names), separators=(",", ":"))) for names in (runs, [experiment]))
    return "/#/compare-runs?runs={}&experiments={}".format(*texts)


def newest(uri: str) -> Pages | None:
    """The pages of the run that began last in the store at `uri`; None where there is none.

    Raises `Unavailable` where the store cannot be read.
    """
    store = Store(uri)
    store.probe()
    with sorted_errors():
        experiments = [e.experiment_id for e in store.client.search_experiments()]
        if not experiments:
            return None
        found = store.client.search_runs(experiments, max_results=1, order_by=["attributes.start_time DESC"])
        if not found:
            return None
        run = found[0]
        if parent := run.data.tags.get(PARENT):  # a training of it began later
            run = store.client.get_run(parent)
        children = store.client.search_runs(
            [run.info.experiment_id],
            f"tags.`{PARENT}` = '{run.info.run_id}' and tags.{ROLE} = '{STUDENT}'",
            max_results=MOST,
            order_by=["attributes.start_time ASC"],
        )
    # A training that began anew has a run each time: the last one counts.
    students = list({child.info.run_name: child.info.run_id for child in children}.values())
    experiment = run.info.experiment_id
    comparison = comparison_page(experiment, students) if len(students) > 1 else ""
    return Pages(str(run.info.run_name), experiment_page(experiment), len(students), comparison)
