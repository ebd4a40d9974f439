"""The MLflow side of tracking: connect to a store, make and find runs, write records in batches.

What MLflow raises is sorted into two: `Unavailable` (try again later: no server, a locked database, a full
disk) and `Rejected` (this record will never be accepted).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from pipeline.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own defaults wait for minutes; a spool takes over here, so seconds do.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Each run has a thread that writes; with more than fifteen of them the default pool refuses records.
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "-1",
}
PAGE = "/#/experiments?workflowType=machine_learning"
"""Append to a server's address: without it MLflow opens its pages for language models."""
PROBE_SECONDS = 3.0
SPOOL_TAG = "faculty.spool_id"
ONE_AT_A_TIME = threading.RLock()
"""Held while a run that began without a store is looked for and made there."""
# Opens the experiment on MLflow's pages for training rather than those for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_REJECTED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS"}
_SQLITE = ("sqlite", "sqlite+pysqlite")


class Unavailable(Exception):
    """The store cannot be used now."""


class Missing(Unavailable):
    """The store does not have this run."""


class Rejected(Exception):
    """The store will never accept this record."""


def configure() -> None:
    """Telemetry off, bounded retries, quiet logs. What the user has set in the environment stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  its import sets levels, so ours come after it

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints a traceback for each failed statement; what matters is reported by us, once.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def resolve_uri(uri: str | None, folder: Path) -> str:
    """`uri`, else MLFLOW_TRACKING_URI, else sqlite in `folder`; sqlite paths made absolute.

    Workers run in other folders, so a relative path would be another database for each. Raises InputError
    for a store that MLflow 3 no longer writes (plain folders) and for an address of an unknown kind.
    """
    where = "tracking.uri" if uri else "MLFLOW_TRACKING_URI"
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder / "mlflow.db")
    scheme = uri.partition("://")[0]
    if scheme in _SQLITE:
        name, _, query = uri.removeprefix(f"{scheme}:///").partition("?")
        if not uri.startswith(f"{scheme}:///") or not name or "\0" in unquote(name):
            raise InputError(where, "a database file, as in sqlite:///runs/mlflow.db", uri)
        if query and "=" not in query:
            remedy = "In an address, %, ? and # of a file's name are written %25, %3F and %23."
            raise InputError(where, "options as name=value after the ?", uri, remedy)
        return sqlite_uri(Path(unquote(name)).expanduser()) + (f"?{query}" if query else "")
    if scheme in ("http", "https", "databricks") or scheme.startswith(("postgresql", "mysql", "mssql")):
        return uri
    remedy = "Give sqlite:///PATH/mlflow.db or the http address of an MLflow server."
    raise InputError(where, "a tracking store that MLflow 3 writes to", public(uri), remedy)


def sqlite_uri(path: Path) -> str:
    """The address of a database file, with what SQLAlchemy would read otherwise (a `?` ends the name) escaped.

    MLflow makes the folder of `sqlite:///...` without decoding it; it leaves an address that names the driver alone.
    """
    plain = str(path.resolve())
    escaped = re.sub("[%?#]", lambda sign: quote(sign[0]), plain)
    return f"{_SQLITE[escaped != plain]}:///{escaped}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite address."""
    scheme, _, name = uri.partition(":///")
    return Path(unquote(name.partition("?")[0])) if name and scheme in _SQLITE else None


def is_server(uri: str) -> bool:
    """Whether `uri` is an MLflow server's address."""
    return uri.startswith(("http://", "https://"))


def page(uri: str | None, folder: Path) -> str:
    """What opens MLflow's pages on the store that `resolve_uri` gives: an address, or a command for a shell."""
    found = resolve_uri(uri, folder)
    if is_server(found):
        return public(found).rstrip("/") + PAGE
    if uri:
        return shlex.join(["faculty", "ui", public(found)])
    # Without an argument the command takes the store of the environment, and needs no password on its line.
    return shlex.join(["faculty", "ui", *([] if os.environ.get("MLFLOW_TRACKING_URI") else [str(folder)])])


def public(uri: str) -> str:
    """`uri` without user name and password, for messages."""
    parts = urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if "@" in parts.netloc else uri


@contextlib.contextmanager
def sorted_errors() -> Iterator[None]:
    """Whatever MLflow raises inside becomes `Unavailable` or `Rejected`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        missing = Missing if error.error_code == "RESOURCE_DOES_NOT_EXIST" else Unavailable
        kind = Rejected if error.error_code in _REJECTED else missing
        raise kind(_first_line(error)) from error
    except (OSError, SQLAlchemyError, RuntimeError) as error:  # requests' are OSErrors; RuntimeError: at exit
        raise Unavailable(_first_line(error)) from error
    except (ValueError, TypeError) as error:
        raise Rejected(f"{type(error).__name__}: {_first_line(error)}") from error


class Store:
    """A tracking store at an address."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, made on first use because importing MLflow takes 1.5 s."""
        if self._client is None:
            configure()
            from mlflow import MlflowClient

            with sorted_errors():
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def probe(self) -> None:
        """Raise `Unavailable` within seconds where the store cannot be reached."""
        if path := sqlite_path(self.uri):
            if not path.exists():
                raise Unavailable(
                    f"{path} does not exist on this machine; several machines need an MLflow server"
                )
        elif is_server(self.uri):
            import requests

            try:
                requests.get(f"{self.uri.rstrip('/')}/health", timeout=PROBE_SECONDS)  # any answer will do
            except requests.RequestException as error:
                raise Unavailable(f"no answer from {public(self.uri)} ({type(error).__name__})") from error

    def initialise(self) -> None:
        """Make a sqlite database before anyone else uses it.

        MLflow's own migration fails where two processes start it at once (duplicate column), hence the lock.
        """
        path = sqlite_path(self.uri)
        if path is None:
            return self.probe()
        with sorted_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path.with_name(f"{path.name}.lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.client.search_experiments(max_results=1)

    def experiment(self, name: str, artifacts: str) -> str:
        """The id of an experiment, made where there is none. Raises InputError where it was deleted."""
        with sorted_errors():
            found = self.client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            restore = _mlflow(self.uri, "experiments", "restore", "-x", found.experiment_id)
            remedy = f"Set another one, or restore it: {restore}"
            raise InputError(
                "tracking.experiment", "an active experiment", f"{name!r}, which was deleted", remedy
            )
        if found is not None:
            return found.experiment_id
        try:
            with sorted_errors():
                # A server knows where it keeps artefacts; a database would put them into the working folder.
                location = None if is_server(self.uri) else artifacts
                return self.client.create_experiment(name, location, EXPERIMENT_TAGS)
        except Rejected:
            with sorted_errors():
                if found := self.client.get_experiment_by_name(name):  # made by another run meanwhile
                    return found.experiment_id
            raise

    def create_run(self, header: Mapping[str, Any], **tags: str) -> str:
        """A new run from its header, below its parent's run; returns its id."""
        experiment = self.experiment(header["experiment"], header["artifacts"])
        labels = {**header["tags"], **tags}
        labels["mlflow.source.name"] = "faculty"
        if user := os.environ.get("USER"):
            labels["mlflow.user"] = user
        if header["parent"]:
            labels["mlflow.parentRunId"] = self.locate(header["parent"], create=True)
        with sorted_errors():
            run = self.client.create_run(experiment, header["start"], labels, header["name"])
        return run.info.run_id

    def locate(self, header: Mapping[str, Any], *, create: bool) -> str:
        """The id in this store of a run that may have begun while no store could be reached.

        Raises Unavailable where there is none and `create` is false: whoever began the run creates it.
        """
        if not header["local"]:
            with contextlib.suppress(Missing), sorted_errors():
                return self.client.get_run(header["id"]).info.run_id
        with ONE_AT_A_TIME:  # the writers of a run and its children come back together
            return self._found_or_created(header, create)

    def _found_or_created(self, header: Mapping[str, Any], create: bool) -> str:
        experiment = self.experiment(header["experiment"], header["artifacts"])
        with sorted_errors():
            found = self.client.search_runs(
                [experiment], f"tags.`{SPOOL_TAG}` = '{header['id']}'", max_results=1
            )
        if found:
            return found[0].info.run_id
        if not create:
            raise Unavailable(f"run {header['name']} is not in {public(self.uri)} yet")
        return self.create_run(header, **{SPOOL_TAG: header["id"]})


def _mlflow(uri: str, *arguments: str) -> str:
    """A command of MLflow about the store at `uri`, as a line for a shell. It repeats no password."""
    settings = ["MLFLOW_DISABLE_TELEMETRY=true"]
    if os.environ.get("MLFLOW_TRACKING_URI") != uri:
        settings.append(f"MLFLOW_TRACKING_URI={public(uri)}")
    return shlex.join(["env", *settings, sys.executable, "-m", "mlflow", *arguments])


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
