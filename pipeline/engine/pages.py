"""Addresses inside MLflow's pages: the newest run's experiment, and the comparison of its students."""

from __future__ import annotations

import json
from urllib.parse import quote

from pipeline.engine.store import PAGE

MOST = 20
"""Runs that one comparison shows."""


def pages(uri: str, base: str) -> dict[str, str]:
    """{what: address} under the server's address `base`, of the newest run of the store; of all its experiments where
    it holds none.

    Experiments are shown in the view of model training: MLflow opens its pages for language models otherwise.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient(tracking_uri=uri)
        experiments = [e.experiment_id for e in client.search_experiments()]
        newest = client.search_runs(experiments, max_results=1, order_by=["attributes.start_time DESC"])
        if not newest:
            return {"experiments": base + PAGE}
        (run,) = newest
        experiment = run.info.experiment_id
        parent = run.data.tags.get("mlflow.parentRunId", run.info.run_id)
        children = client.search_runs(
            [experiment], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'", max_results=MOST
        )
    except (MlflowException, SQLAlchemyError):  # of another version, or not a store: its own server says so
        return {"experiments": base + PAGE}
    found = {"newest run": f"{base}/#/experiments/{experiment}/runs?workflowType=machine_learning"}
    students = [r.info.run_id for r in children if "fingerprint" in r.data.tags]
    if len(students) > 1:
        asked = (quote(json.dumps(value)) for value in (students, [experiment]))
        found["its students compared"] = "{}/#/compare-runs?runs={}&experiments={}".format(base, *asked)
    return found
