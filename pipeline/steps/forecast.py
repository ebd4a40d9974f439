"""What a run will take: bytes, operations, hours and money, before anything is started.

A stage takes as long as the slowest of what it does at the same time: computing, moving bytes over the network, writing
and hashing them. Everything here is arithmetic on `Work` (which each task counts) and `Rates` (`python -m benchmarks
rates`, or assumed where no such machine was at hand; each constant says which). docs/scale.md has formulas and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

BACKWARD = 3
"""A training step counts as three forward passes: one forward, two for the gradients of weights and inputs."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one machine does in a second, and what it costs."""

    teach: float
    """Multiply-adds a second of one device running teachers."""
    train: float
    """Multiply-adds a second of one device training a small student."""
    cut: float
    """HR pixels a second that one core decodes, degrades and cuts into tiles."""
    hash: float
    """Bytes a second of sha256 on one core: paid when a shard is written and when a machine first reads it."""
    disk: float
    """Bytes a second that a node writes durably."""
    network: float
    """Bytes a second between a node and the store."""
    devices: int = 1
    """GPUs (or CPU workers) of a node."""
    cores: int = 1
    """CPU cores of a node."""
    start: float = 25.0
    """Seconds before and between the stages in which Ray and its processes start."""
    price: float = 1.0
    """Of one device for an hour, with its share of the node, in any currency."""


MEASURED_CORE = Rates(
    teach=7.6e10, train=3.3e10, cut=2.7e7, hash=1.4e9, disk=1.0e9, network=float("inf"), start=24.1, price=0.0
)
"""One core of the machine in benchmarks/results.md; store and node are the same machine."""

ASSUMED_GPU = Rates(
    teach=15e12, train=5e12, cut=0.0, hash=0.0, disk=1e9, network=1.25e9, devices=8, cores=64, start=60.0
)
"""One data-centre GPU of a node with eight, 10 Gbit/s to the store and local NVMe: ASSUMED, not measured. `teach` is
30 T operations a second, about a tenth of such a GPU's bf16 peak, which convolutions of modest width reach; `train` is
lower because students are small. `cut` and `hash` are those of the measured core."""


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do."""

    pictures: int
    pixels: int
    """HR pixels of one picture."""
    tiles: int
    """Samples: tiles, or whole pictures."""
    tile_bytes: int
    """Of one sample: LR and HR of a tile."""
    output_bytes: int
    """Of one sample: every teacher's output."""
    fused_bytes: int
    """Of one sample; 0 where nothing is fused."""
    teacher_ops: int
    """Multiply-adds of all teachers for one sample."""
    fusion_training_ops: float
    """Multiply-adds of training the aggregation network, in all; 0 for other fusions."""
    fusion_ops: float
    """Multiply-adds of running it on every tile."""
    step_ops: int
    """Multiply-adds of one training step of the student."""
    steps: int
    shard_bytes: float
    trainings: int = 1
    """Of the students: methods, seeds and gaps, each counted as the recipe's own method."""

    @property
    def cache_bytes(self) -> int:
        """All that the cache holds in the end."""
        return self.tiles * (self.tile_bytes + self.output_bytes + self.fused_bytes)

    @property
    def shards(self) -> int:
        """Tile shards."""
        return max(1, round(self.tiles * self.tile_bytes / self.shard_bytes))


@dataclass(frozen=True, slots=True)
class Effort:
    """Multiply-adds of one method, whatever of it is cached already. Loss heads and discriminators are not counted."""

    step: float
    """Of one step of its student: three forward passes, and one of each network that only runs in it."""
    helper_step: float = 0.0
    """Of what it trains first, for as many steps as the student: of one step."""
    fixed: float = 0.0
    """Of what it trains first, for a length of its own, and of that network's outputs."""
    teaching: float = 0.0
    """Of the teachers that it reads, on all training samples."""
    training: float = 0.0
    """Of training these, where the run does."""
    fusing: float = 0.0
    """Of the network that fuses them: its training and its outputs."""

    def before(self, count: Sequence[str]) -> float:
        """What it pays whatever its student's length; `count`: of what methods share, as in `compare.count`."""
        shared = {"teaching": self.teaching + self.training, "fusing": self.fusing}
        return self.fixed + sum(shared[name] for name in count)

    def work(self, steps: int, count: Sequence[str] = ()) -> float:
        """Of the method with a student of so many steps."""
        return self.before(count) + steps * (self.step + self.helper_step)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds by stage, what holds each up, and the sum."""

    gpus: int
    tiles: float
    teach: float
    fuse: float
    distill: float
    limits: dict[str, str]
    """Stage -> what takes longest in it: compute, network, disk, hash."""
    shards_per_second: float
    """That one node teaches."""
    device_hours: float
    spend: float

    @property
    def seconds(self) -> float:
        return self.tiles + self.teach + self.fuse + self.distill


def predict(todo: Work, rates: Rates, gpus: int, workers: int | None = None) -> Prediction:
    """Time and money on `gpus` devices; a student trains on `workers` of them (default: all of one node at most), and
    as many students side by side as there are devices for.

    The spend counts all devices in teach and fuse, and the trainings' alone in distill: a cluster that gives idle
    nodes back pays for no more.
    """
    nodes = -(-gpus // rates.devices)
    cores = nodes * rates.cores if gpus >= rates.devices else max(1, rates.cores * gpus // rates.devices)
    trainers = workers or min(gpus, rates.devices)
    made = todo.tiles * todo.tile_bytes
    cut, cut_limit = _longest(
        compute=todo.pictures * todo.pixels / (rates.cut * cores),
        hash=made / (rates.hash * cores),
        disk=made / (rates.disk * nodes),
        network=made / (rates.network * nodes),
    )
    out = todo.tiles * todo.output_bytes
    busy = min(gpus, max(todo.shards, 1))
    compute = todo.tiles * todo.teacher_ops / (rates.teach * busy)
    teach, teach_limit = _longest(
        compute=compute,
        hash=(made + out) / (rates.hash * cores),
        disk=out / (rates.disk * nodes),
        network=(made + out) / (rates.network * nodes),
    )
    fused = todo.tiles * todo.fused_bytes
    fuse, fuse_limit = _longest(
        compute=todo.fusion_ops / (rates.teach * gpus),
        hash=(made + out + fused) / (rates.hash * cores) if fused else 0.0,
        disk=fused / (rates.disk * nodes),
        network=(made + out + fused) / (rates.network * nodes) if fused else 0.0,
    )
    # The aggregation network is trained before it runs, like the student: on the training's devices.
    learn = todo.fusion_training_ops / (rates.train * trainers)
    fetched = made + (fused or out)
    abreast = min(gpus, trainers * todo.trainings)
    own_nodes = -(-abreast // rates.devices)
    # Every training node fetches and verifies the whole set before its first step; then it only computes.
    fetch = max(fetched / rates.network, fetched / (rates.hash * rates.cores))
    step = todo.trainings * todo.steps * todo.step_ops / (rates.train * abreast)
    distill = fetch + step
    spend_seconds = gpus * (cut + teach + fuse + rates.start) + trainers * learn + abreast * distill
    return Prediction(
        gpus=gpus,
        tiles=cut,
        teach=teach,
        fuse=fuse + learn,
        distill=distill + rates.start,
        limits={
            "tiles": cut_limit,
            "teach": teach_limit,
            "fuse": "training" if learn > fuse else fuse_limit,
            "distill": "compute" if step >= fetch else f"fetching to {own_nodes} node{'s' * (own_nodes > 1)}",
        },
        shards_per_second=todo.shards / teach / nodes if teach else float("inf"),
        device_hours=spend_seconds / 3600,
        spend=spend_seconds / 3600 * rates.price,
    )


def _longest(**seconds: float) -> tuple[float, str]:
    name = max(seconds, key=lambda key: seconds[key])
    return seconds[name], name


def gpu_rates(**changes: float) -> Rates:
    """The assumed GPU with the measured core's `cut` and `hash`, and what the user knows better."""
    filled = replace(ASSUMED_GPU, cut=MEASURED_CORE.cut, hash=MEASURED_CORE.hash)
    return replace(filled, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
