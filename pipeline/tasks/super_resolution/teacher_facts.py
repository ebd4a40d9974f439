"""What is found out about a teacher once, before it teaches: its network, its units, what the gate has against it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.store import Store
from pipeline.cost import known_multiply_adds
from pipeline.errors import FacultyError, InputError
from pipeline.recipe.recipe import Recipe, TeacherSpec
from teachers import factory, zoo
from teachers.checkpoints import checkpoint_sha256
from teachers.descriptor import Precision, Teacher
from teachers.gate import Finding, check, name
from teachers.loading import load_teacher
from teachers.onnx_network import OnnxNetwork
from teachers.precision_gate import precision_gate

VERSION = 1
SIDE = 48
FACTORY = "factory:"
"""What the path of a network from a factory begins with."""


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What was found out about one teacher, once; the cache keeps it."""

    label: str
    path: str
    sha256: str
    architecture: str
    scale: int
    parameters: int
    multiply_adds: int | None
    """For one 48 x 48 LR tile; None where a graph, or code of one's own, does not tell."""
    precision: Precision
    reading: dict[str, Any] = field(default_factory=dict)
    """`Convention` as the recipe has it, where that is not what the loader knows."""
    findings: tuple[Finding, ...] = ()
    """What the gate has against it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of a factory, whose place is the `path`."""

    @property
    def warnings(self) -> list[str]:
        """The gate's findings, in the words of an error."""
        where = f"teacher {self.label} ({self.architecture} x{self.scale})"
        return [str(finding.error(where)) for finding in self.findings]

    def open(self, cache: str, device: str) -> Teacher:
        """The teacher, ready to run."""
        return load(self, device)

    def record(self) -> dict[str, Any]:
        """The JSON that the cache keeps. What is as it mostly is, is left out."""
        return {k: v for k, v in asdict(self).items() if k not in ("reading", "findings", "options") or v}

    def identity_on(self, tiles_folder: str, dtype: str) -> dict[str, object]:
        return {
            "version": VERSION,
            "tiles": tiles_folder,
            "sha256": self.sha256,
            "scale": self.scale,
            "precision": self.precision,
            "dtype": dtype,
            **({"reading": self.reading} if self.reading else {}),
        }

    def folder(self, tiles_folder: str, dtype: str) -> str:
        """Where the output shards lie."""
        kind = self.architecture.lower().replace(" ", "-")
        return f"outputs/{tiles_folder.split('/')[-1]}/{kind}-{fingerprint(self.identity_on(tiles_folder, dtype))}"


def find_facts(spec: TeacherSpec, scale: int, cache: str, device: str = "cpu") -> TeacherFacts:
    """Load a teacher, put it through the gate, choose its precision. Known facts are read from the cache.

    Raises InputError for a missing, damaged, unknown or misfitting checkpoint and, under `gate: check`, for one of
    which the gate is certain. What else it finds is in the facts.
    """
    store = Store.open(cache)
    kind = device.split(":")[0]
    if (known := known_facts(spec, scale, store, kind)) is not None:
        return known
    path, sha256 = identified(spec)
    as_known = opened(spec, scale).to(device)
    teacher = as_known.with_convention(**spec.convention)
    once = teacher.with_convention(self_ensemble=False)
    findings = tuple(check(once)) if spec.gate != "off" else ()
    for finding in findings:
        if finding.certain and spec.gate == "check":
            raise finding.error(name(teacher))
    precision = spec.precision
    if precision == "auto":
        precision = precision_gate(once)
    once.precision(precision)
    info = teacher.info
    facts = TeacherFacts(
        label=spec.label,
        path=path,
        sha256=sha256,
        architecture=info.architecture,
        scale=scale,
        parameters=info.parameters,
        multiply_adds=operations(teacher),
        precision=precision,
        reading={k: v for k, v in spec.convention.items() if v != getattr(as_known.convention, k)},
        findings=findings,
        options=dict(spec.options),
    )
    records.save(store, _facts_file(sha256, scale, spec, kind), facts.record())
    return facts


def operations(teacher: Teacher) -> int | None:
    """Multiply-adds for one 48 x 48 LR tile; None where a graph, or code of one's own, does not tell."""
    times = 8 if teacher.convention.self_ensemble else 1
    if isinstance(teacher.network, OnnxNetwork):
        once = teacher.network.multiply_adds(SIDE)
        return None if once is None else times * once
    once = known_multiply_adds(teacher.network, (1, 1 if teacher.convention.luma else 3, SIDE, SIDE))
    return None if once is None else times * once


def known_facts(spec: TeacherSpec, scale: int, store: Store, kind: str) -> TeacherFacts | None:
    """What the cache knows of this checkpoint on this kind of device (`cpu`, `cuda`), or None."""
    path, sha256 = identified(spec)
    rel = _facts_file(sha256, scale, spec, kind)

    def own(facts: dict[str, Any]) -> TeacherFacts:
        if facts["sha256"] != sha256:
            raise ValueError("it describes another checkpoint")
        findings = tuple(Finding(**finding) for finding in facts.pop("findings", ()))
        return TeacherFacts(**{**facts, "label": spec.label, "path": path, "findings": findings})

    return records.load(store, rel, own)


def known(recipe: Recipe, store: Store) -> list[tuple[str, TeacherFacts]]:
    """(label, facts) of every teacher of a recipe, from any device. Raises FacultyError for an unknown one."""
    found = []
    for spec in recipe.teachers:
        every = (known_facts(spec, recipe.scale, store, kind) for kind in ("cuda", "cpu"))
        if (facts := next((f for f in every if f is not None), None)) is None:
            raise FacultyError(f"{spec.label}: no outputs of this recipe in {store.where('')}")
        found.append((spec.label, facts))
    return found


def located(spec: TeacherSpec) -> TeacherSpec:
    """The teacher with its file's absolute path; names of the zoo stay, because the zoo knows more than the file."""
    path = Path(spec.checkpoint or "")
    return spec.model_copy(update={"checkpoint": str(path.absolute())}) if path.is_file() else spec


def opened(spec: TeacherSpec, scale: int) -> Teacher:
    """The teacher of a recipe as what it is known to be, on the CPU. Raises InputError."""
    if spec.factory:
        return factory.make(spec.factory, spec.options, scale=scale, name=spec.label)
    return load_teacher(spec.checkpoint, scale=scale, name=spec.label)


def identified(spec: TeacherSpec) -> tuple[str, str]:
    """(where the teacher is found again, sha256 of all that it is made of). Raises InputError."""
    if spec.factory:
        return FACTORY + spec.factory, factory.sha256(spec.factory, spec.options)
    path, sha256 = resolve(spec.checkpoint)
    return str(path), sha256


def resolve(checkpoint: str) -> tuple[Path, str]:
    """The file behind a path or a name of the zoo (downloaded where it is not here yet), and its sha256."""
    path = Path(checkpoint)
    if not path.is_file():
        if checkpoint not in zoo.ZOO:
            raise InputError(
                f"teachers: {checkpoint}",
                "a checkpoint file or a name of the zoo",
                "neither",
                "`faculty teachers` lists the zoo's names.",
            )
        path = zoo.fetch(zoo.ZOO[checkpoint])
    return path.absolute(), checkpoint_sha256(path)


def _facts_file(sha256: str, scale: int, spec: TeacherSpec, kind: str) -> str:
    settings = [str(v) for k in ("gate", "channels", "value_range") if (v := spec.changed.get(k)) is not None]
    settings += ["ensemble"] if spec.self_ensemble else []
    return f"teachers/{'-'.join([sha256[:16], f'x{scale}', spec.precision, kind, *settings])}.json"


def load(facts: TeacherFacts, device: str = "cpu") -> Teacher:
    """The teacher as its facts describe it, ready to run."""
    if facts.path.startswith(FACTORY):
        place = facts.path.removeprefix(FACTORY)
        teacher = factory.make(place, facts.options, scale=facts.scale, name=facts.label)
    else:
        teacher = load_teacher(_here(facts), scale=facts.scale, name=facts.label)
    return teacher.to(device).with_convention(**facts.reading).precision(facts.precision)


def _here(facts: TeacherFacts) -> str:
    """The teacher's file on this machine: where it was found, or fetched from the zoo here too. Raises InputError."""
    path = Path(facts.path)
    entry = zoo.ZOO.get(path.stem)
    if path.is_file() or entry is None:
        return facts.path
    own = zoo.fetch(entry)
    if checkpoint_sha256(own) != facts.sha256:
        remedy = "Remove it, so that it is fetched again."
        raise InputError(
            str(own), f"{entry.name} as on the machine that began the run", "another file", remedy
        )
    return str(own)


def looked_at(asked: tuple[TeacherSpec, int, str], device: str) -> TeacherFacts:
    """As `find_facts`, as one item of an engine's map."""
    return find_facts(*asked, device)
