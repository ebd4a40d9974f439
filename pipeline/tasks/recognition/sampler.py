"""Training batches of recognition: which pictures, in which views, as a pure function of (seed, step, global batch).

Sample n = step * batch + i. In random order, sample n belongs to epoch n // pictures, and a keyed permutation of the
pictures, another in each epoch, names its picture. With P x K sampling, slot m = n // K names the identity in the same
way, and the slot's own permutation names K of its pictures. The view is drawn by counter. No order is kept between
steps, so a resumed training, or one on another number of workers, sees exactly the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.manifest import Manifest
from pipeline.cache.order import below, epoch_keys, mix, permute, read_ahead, uneven, words
from pipeline.cache.placed import fits, sent
from pipeline.cache.rows import Rows
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.tasks.recognition.degradations import noise_name, student_pictures
from pipeline.tasks.recognition.kept import Kept
from pipeline.tasks.recognition.mixing import Mixed, how, lines, mixed, partners
from pipeline.tasks.recognition.ready import ReadyViews
from pipeline.tasks.recognition.resident import ResidentViews, as_read
from pipeline.tasks.recognition.settings import Degradation, Mixing, Sampling, Views
from pipeline.tasks.recognition.views import Move, draw, see

BLOCK = 32
"""Steps that are drawn at once: for few numbers NumPy's calls cost more than what they do."""


@dataclass(frozen=True, slots=True)
class ViewBatch:
    """One worker's share of a batch."""

    tensors: dict[str, np.ndarray]
    """`lr`, `hr` (b, h, w, 3) uint8, `label` (b,), `mask` (b, H, W) of 0 and 1, and cached outputs by name, float16."""
    ids: list[str]
    mixed: Mixed | None = None
    """What is mixed into it."""

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """Pictures as (b, 3, h, w) float32 in [0, 1], channels_last; outputs as float32; labels and masks as int64.
        Where something is mixed in, as `mixing.mixed` says.
        """
        where = torch.device(device)
        own = _on(self.tensors, where)
        if self.mixed is None:
            return own
        told = {name: sent(torch.from_numpy(x), where) for name, x in self.mixed.told.items()}
        return mixed(own, _on(self.mixed.tensors, where), told)

    def split(self, size: int) -> list[ViewBatch]:
        """Parts of `size` samples, one after the other."""
        parts = []
        for at in (slice(begin, begin + size) for begin in range(0, len(self.ids), size)):
            with_it = self.mixed and Mixed(_rows(self.mixed.tensors, at), _rows(self.mixed.told, at))
            parts.append(ViewBatch(_rows(self.tensors, at), self.ids[at], with_it))
        return parts


def _on(tensors: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    return {name: as_read(name, sent(torch.from_numpy(x), device)) for name, x in tensors.items()}


def _rows(columns: Mapping[str, np.ndarray], at: slice) -> dict[str, np.ndarray]:
    return {name: x[at] for name, x in columns.items()}


class Gallery:
    """A split's pictures in shards, in order of their ids, and cached outputs that belong to them."""

    def __init__(
        self, store: Store, pictures: Manifest, outputs: Mapping[str, Manifest] | None = None
    ) -> None:
        """Open and verify. Raises CorruptShard, or InputError for outputs of other pictures."""
        self.rows = Rows(store, pictures)
        everything = np.arange(len(self.rows))
        self.labels = self.rows.take("label", everything)
        self.ids = self.rows.ids().to_pylist()
        self.outputs: dict[str, Rows] = {}
        for name, manifest in (outputs or {}).items():
            rows = Rows(store, manifest)
            if not rows.ids().equals(self.rows.ids()):
                raise InputError(
                    f"cached outputs of {name}",
                    f"those of the {len(self.rows)} pictures of {self.rows.name}",
                    f"{len(rows)} rows of {manifest.inputs.get('pictures', 'other pictures')}",
                    "They belong to other data: delete them, or name another cache.root.",
                )
            self.outputs[name] = rows
        self.has_mask = self.rows.shape("mask") is not None

    def __len__(self) -> int:
        return len(self.rows)

    def hr(self, numbers: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8, as stored."""
        return self.rows.take("hr", numbers)

    def masks(self, numbers: np.ndarray) -> np.ndarray:
        """(n, H, W, 1) uint8 of 0 and 255."""
        return self.rows.take("mask", numbers)


class ViewSampler:
    """Batches of views of a gallery's pictures at one gap."""

    def __init__(
        self,
        gallery: Gallery,
        *,
        batch: int,
        seed: int,
        gap: int,
        views: Views,
        enlarged: bool = False,
        lr: Sequence[Degradation] = ("bicubic",),
        sampling: Sampling | None = None,
        mixing: Mixing | None = None,
        columns: Sequence[str] = ("lr", "label"),
    ) -> None:
        """`columns` says what to read: `lr`, `hr`, `label`, `mask`, and `<outputs>/<column>` of cached outputs; `lr`
        says of which degradations each sample has one.

        Raises InputError where identities are asked for and there are fewer than two.
        """
        self.gallery, self.size, self.seed, self.gap = gallery, batch, seed, gap
        self.views, self.enlarged, self.sampling, self.lr = views, enlarged, sampling, tuple(lr)
        self.mixing = mixing if mixing is not None and mixing.on else None
        self.columns = tuple(columns)
        self.members = [np.flatnonzero(gallery.labels == n) for n in np.unique(gallery.labels)]
        self.variants = views.count * len(self.lr)
        """How many LR pictures there are of one: number v * len(lr) + d is view v under degradation d."""
        self._drawn: tuple[tuple[int, int], dict[str, np.ndarray]] = (0, 0), {}
        self._kept = Kept(len(gallery) * self.variants)
        if sampling is not None and len(self.members) < 2:
            raise InputError("sampling", "at least two identities to train on", f"{len(self.members)}")

    def batch(self, step: int, rank: int = 0, world: int = 1) -> ViewBatch:
        """Samples [rank * b, (rank + 1) * b) of global batch `step`, b = batch / world.

        Raises InputError if the batch does not divide by `world`.
        """
        return self.read_steps(step, 1, rank, world)

    def read_steps(self, step: int, steps: int, rank: int = 0, world: int = 1) -> ViewBatch:
        """`batch` of these steps in one, one after the other. Raises as `batch` does."""
        numbers, chosen = self.where(step, rank, world, steps)
        ids = [self.gallery.ids[n] for n in numbers]
        if self.mixing is None:
            return ViewBatch(self.read(numbers, chosen), ids)
        *others, told = self.partners(step, rank, world, steps)
        return ViewBatch(self.read(numbers, chosen), ids, Mixed(self.read(*others), told))

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of an LR picture."""
        height, width = self.gallery.rows.shape("hr")[0][:2]  # type: ignore[index]
        return height // self.gap, width // self.gap

    def partners(
        self, step: int, rank: int = 0, world: int = 1, steps: int = 1
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """(picture, variant) numbers of the samples that are mixed into those of `where`, and how (`mixing.lines`)."""
        told = self._share(step, rank, world, steps)
        del told["number"], told["variant"]
        return told.pop("other number"), told.pop("other variant"), told

    def where(
        self, step: int, rank: int = 0, world: int = 1, steps: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """(picture, variant) numbers (b,) of the samples of `batch`; of those of `steps` steps, one after the other.
        Raises as `batch` does.
        """
        found = self._share(step, rank, world, steps)
        return found["number"], found["variant"]

    def _share(self, step: int, rank: int, world: int, steps: int) -> dict[str, np.ndarray]:
        """What is drawn for a worker's samples of these steps, each (steps * b, ...)."""
        if self.size % world:
            raise uneven("train.batch", self.size, world)
        together = step % BLOCK + steps <= BLOCK
        begin, count = (step - step % BLOCK, BLOCK) if together else (step, steps)
        known = self._drawn
        if known[0] != (begin, count):
            known = self._drawn = (begin, count), self._draw(begin, count)
        own = self.size // world
        chosen = slice(step - begin, step - begin + steps), slice(rank * own, (rank + 1) * own)
        return {
            name: x.reshape(count, self.size, *x.shape[1:])[chosen].reshape(-1, *x.shape[1:])
            for name, x in known[1].items()
        }

    def _draw(self, step: int, steps: int) -> dict[str, np.ndarray]:
        """What is drawn for the samples of these steps' global batches, each (steps * batch, ...)."""
        first, count = step * self.size, steps * self.size
        samples = np.arange(first, first + count, dtype=np.uint64)
        numbers = self._identities(samples) if self.sampling else self._shuffled(samples)
        draws = words(self.seed, first, count)
        chosen = below(draws[0], self.views.count)
        if len(self.lr) > 1:
            chosen = chosen * len(self.lr) + below(draws[0] << np.uint64(32), len(self.lr))
        found = {"number": numbers, "variant": chosen}
        if self.mixing is not None:
            others = partners(self.seed, samples, self.size) - first
            found |= {"other number": numbers[others], "other variant": chosen[others]}
            found |= lines(how(self.mixing, draws, self.grid), self.grid)
        return found

    def on(self, device: torch.device) -> ViewSampler | ResidentViews | ReadyViews:
        """The same batches for a training on this device: from views that live there, where they fit."""
        if device.type == "cpu":
            return ReadyViews(self)
        each = sum(x.nbytes for x in self.example().values())
        room = fits(len(self.gallery) * self.variants * each, device)
        return ResidentViews(self, device) if room else self

    def example(self) -> dict[str, np.ndarray]:
        """The columns of one picture."""
        return self.read(np.zeros(1, np.int64), np.zeros(1, np.int64))

    def iterate(
        self, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[int, ViewBatch]]:
        """(step, share) for the steps of [start, stop) while one thread prepares the next."""
        return read_ahead(self.batch, start, stop, rank, world)

    def _shuffled(self, samples: np.ndarray) -> np.ndarray:
        epoch, position = np.divmod(samples, np.uint64(len(self.gallery)))
        return permute(position, len(self.gallery), epoch_keys(self.seed, epoch))

    def _identities(self, samples: np.ndarray) -> np.ndarray:
        assert self.sampling is not None
        slot, place = np.divmod(samples, np.uint64(self.sampling.pictures))
        epoch, position = np.divmod(slot, np.uint64(len(self.members)))
        identity = permute(position, len(self.members), epoch_keys(self.seed, epoch))
        numbers = np.empty(len(samples), np.int64)
        keys = mix(slot ^ mix(np.array([self.seed + 1], np.uint64)))
        for i, (person, k, key) in enumerate(zip(identity, place, keys)):
            own = self.members[person]
            wrapped = np.array([k % np.uint64(len(own))], np.uint64)
            numbers[i] = own[permute(wrapped, len(own), np.array([key], np.uint64))[0]]
        return numbers

    def read(self, numbers: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of these variants of these pictures."""
        views = chosen // len(self.lr)
        result: dict[str, np.ndarray] = {}
        if "hr" in self.columns:
            result["hr"] = see(self.gallery.hr(numbers), self._moves(numbers, views))
        if "lr" in self.columns:
            result["lr"] = self._kept.of(numbers * self.variants + chosen, self._student_pictures)
        if "label" in self.columns:
            result["label"] = self.gallery.labels[numbers]
        if "mask" in self.columns:
            masks = see(self.gallery.masks(numbers), self._moves(numbers, views), light=False)
            result["mask"] = (masks[..., 0] > 127).astype(np.uint8)
        for name in self.columns:
            source, _, column = name.partition("/")
            if column:
                result[name] = self.gallery.outputs[source].take(column, numbers, views)
        return result

    def _moves(self, numbers: np.ndarray, views: np.ndarray) -> list[Move]:
        return [draw(self.views, self.gallery.ids[n], int(v)) for n, v in zip(numbers, views)]

    def _student_pictures(self, rows: np.ndarray) -> np.ndarray:
        """The student's pictures of these rows: picture * variants + variant."""
        numbers, chosen = np.divmod(rows, self.variants)
        views, kinds = np.divmod(chosen, len(self.lr))
        hr = see(self.gallery.hr(numbers), self._moves(numbers, views))
        names = [noise_name(self.views, self.gallery.ids[n], int(v)) for n, v in zip(numbers, views)]
        parts, places = [], []
        for number, kind in enumerate(self.lr):
            if len(at := np.flatnonzero(kinds == number)):
                named = [names[i] for i in at]
                parts.append(student_pictures(hr[at], self.gap, self.enlarged, kind, named))
                places.append(at)
        return np.concatenate(parts)[np.argsort(np.concatenate(places))]
