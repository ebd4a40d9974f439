"""Starting and leaving Ray."""

from __future__ import annotations

import logging
import os

import ray

from pipeline.errors import FacultyError

OBJECT_STORE_BYTES = 200 * 10**6
ENVIRONMENT = {
    # A report to Ray Train waits for the controller's poll; its default of 2 s is for hour-long epochs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


def start(address: str | None) -> None:
    """Join the cluster at `address`, or the one of the surrounding job, or start Ray on this machine alone.

    No pictures go through the object store, so a local Ray gets a small one. Raises FacultyError where the
    address does not answer.
    """
    if ray.is_initialized():
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    passed_on = {
        k: v
        for k, v in os.environ.items()
        if k in ENVIRONMENT or k.startswith(("FACULTY_", "MLFLOW_", "AWS_"))
    }
    try:
        if address == "local":
            logging.getLogger("ray").setLevel(
                logging.ERROR
            )  # its notes are about clusters that others can reach
            ray.init(
                address="local",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        else:
            ray.init(address=address, logging_level=logging.ERROR, runtime_env={"env_vars": passed_on})
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        raise FacultyError(
            f"Ray at {address!r} does not answer: {error}. Check the address "
            f"(`ray status --address {address}`), or leave --address out to run on this machine."
        ) from error


def stop() -> None:
    """Leave the cluster; ends a local Ray."""
    if ray.is_initialized():
        ray.shutdown()
