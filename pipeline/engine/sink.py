"""Writes records to one MLflow run, in as few calls as MLflow's limits allow.

Every record may come twice (a call that timed out may have arrived, a worker that was killed replays its
last steps), so the first one stays: a metric and a picture are stored once for each name and step, a
setting once for each name.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from pipeline.engine.records import Record
from pipeline.engine.store import Rejected, Store, sorted_errors

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

log = logging.getLogger(__name__)

METRICS_A_CALL = 1000  # MLflow's limit
VALUES_A_CALL = 50  # params or tags: MLflow's limits are 100 and 1 MB a request
MERGED = ("metrics", "params", "tags")
# MLflow stores a picture and then its small copy: where the copy is, the picture is whole.
STORED_IMAGE = re.compile(r"images/(.+)\+step\+(-?\d+)\+timestamp\+.*\+compressed")

T = TypeVar("T")


class Sink:
    """One run of a store. Used by one thread."""

    def __init__(self, store: Store, run_id: str, *, fresh: bool) -> None:
        """`fresh`: nobody has written to this run before, so there is no need to ask what it holds."""
        self.store, self.run_id = store, run_id
        self.counts: Counter[str] = Counter()
        self._steps: defaultdict[str, set[int]] = defaultdict(set)
        self._images: set[tuple[str, int]] = set()
        self._params: dict[str, str] = {}
        self._unread = not fresh

    def write(self, records: Sequence[Record]) -> int:
        """Send a prefix of `records`; returns its length.

        A record that the store refuses for good is logged and counts as sent. Raises Unavailable.
        """
        first = records[0]
        if first.kind not in MERGED:
            self._one(first)
            return 1
        length = next((i for i, r in enumerate(records) if r.kind not in MERGED), len(records))
        try:
            self._batch(records[:length])
        except Rejected:
            for record in records[:length]:  # which of them was it?
                try:
                    self._batch([record])
                except Rejected as error:
                    self._refused(record, error)
        return length

    def _batch(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self._read()
        points = self._new_points(records)
        params = self._new_params(records)
        tags = {k: v for r in records if r.kind == "tags" for k, v in r.values.items()}
        with sorted_errors():
            client = self.store.client
            for settings in _parts([Param(k, v) for k, v in params.items()], VALUES_A_CALL):
                client.log_batch(self.run_id, params=settings)
            for labels in _parts([RunTag(k, v) for k, v in tags.items()], VALUES_A_CALL):
                client.log_batch(self.run_id, tags=labels)
            for metrics in _parts([Metric(*point) for point in points], METRICS_A_CALL):
                client.log_batch(self.run_id, metrics=metrics)
        self._params |= params
        for name, _, _, step in points:
            self._steps[name].add(step)
        self.counts.update(metrics=len(points), params=len(params), tags=len(tags))

    def _one(self, record: Record) -> None:
        try:
            if record.kind == "image":
                self._image(record)
            else:
                self._other(record)
        except Rejected as error:
            self._refused(record, error)

    def _image(self, record: Record) -> None:
        self._read()
        if (record.name, record.step) in self._images:
            return
        source: Any = record.payload
        try:
            picture = source if isinstance(source, np.ndarray) else np.asarray(Image.open(source))
        except Exception as error:  # a spooled picture that was damaged: whatever Pillow makes of it
            raise Rejected(f"{source} cannot be read as a picture") from error
        with sorted_errors():
            self.store.client.log_image(
                self.run_id,
                picture,
                key=record.name,
                step=record.step,
                timestamp=record.time,
                synchronous=True,
            )
        self._images.add((record.name, record.step))
        self.counts["image"] += 1

    def _other(self, record: Record) -> None:
        client, source = self.store.client, record.payload
        if record.kind == "inputs":
            self._inputs(record)
            return
        with sorted_errors():
            if record.kind == "artifact":
                path = Path(str(source))
                if not path.exists():
                    raise Rejected(f"{path} is gone")
                send = client.log_artifacts if path.is_dir() else client.log_artifact
                send(self.run_id, str(path), record.name or None)
            elif record.kind == "text":
                client.log_text(self.run_id, str(source), record.name)
            elif record.name == "RUNNING":
                client.update_run(self.run_id, status=record.name)
            else:
                client.set_terminated(self.run_id, record.name, record.time)
        self.counts[record.kind] += 1

    def _inputs(self, record: Record) -> None:
        """MLflow knows a set again by its digest; but runs that name a new one at the same moment all insert it, and
        those that come too late are refused. Asked again, they find it.
        """
        for attempt in range(2):
            try:
                with sorted_errors():
                    self.store.client.log_inputs(self.run_id, [_dataset(record)])
                break
            except Rejected:
                if attempt:
                    raise
        self.counts["inputs"] += 1

    def _read(self) -> None:
        """Learn what a run that others wrote to holds already."""
        if not self._unread:
            return
        with sorted_errors():
            client = self.store.client
            data = client.get_run(self.run_id).data
            for name in data.metrics:
                self._steps[name] = {m.step for m in client.get_metric_history(self.run_id, name)}
            self._params = dict(data.params)
            for item in client.list_artifacts(self.run_id, "images"):
                if found := STORED_IMAGE.match(item.path):
                    self._images.add((found[1].replace("~", "/"), int(found[2])))
        self._unread = False

    def _new_points(self, records: Iterable[Record]) -> list[tuple[str, float, int, int]]:
        """(name, value, time, step) of the metrics that are not stored yet."""
        new: dict[tuple[str, int], tuple[str, float, int, int]] = {}
        for record in records:
            if record.kind == "metrics":
                for name, value in record.values.items():
                    if record.step not in self._steps[name]:
                        new.setdefault((name, record.step), (name, value, record.time, record.step))
        return list(new.values())

    def _new_params(self, records: Iterable[Record]) -> dict[str, str]:
        new: dict[str, str] = {}
        for name, value in ((k, v) for r in records if r.kind == "params" for k, v in r.values.items()):
            before = new.get(name, self._params.get(name))
            if before is None:
                new[name] = value
            elif before != value:
                log.warning(
                    "tracking: %s stays %r, MLflow does not change a parameter to %r", name, before, value
                )
        return new

    def _refused(self, record: Record, error: Rejected) -> None:
        self.counts["refused"] += 1
        what = record.name or ", ".join(record.values)
        log.warning("tracking: MLflow refused %s %s: %s", record.kind, what[:200], error)


def _dataset(record: Record) -> DatasetInput:
    """A data set as MLflow's pages read it: where it lies and how many rows it has, as JSON."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    values = record.values
    source = str(values["source"])
    scheme = source.partition("://")[0] if "://" in source else "file"
    entity = Dataset(
        name=str(values["name"]),
        digest=str(values["digest"]),
        source_type="local" if scheme == "file" else scheme,
        source=json.dumps({"uri": source}),
        profile=json.dumps({"num_rows": values["rows"]}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", str(values["context"]))])


def _parts(items: list[T], size: int) -> Iterable[list[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
