"""Faculty on Ray: actors that teach, trainings under Ray Train, searches under Ray Tune, records in MLflow."""

from pipeline.imports import unsearched

with unsearched():  # each of the processes begins here
    import ray  # noqa: F401
    import torch  # noqa: F401
