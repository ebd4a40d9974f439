"""The networks that see HR: trained by the run, or read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cache import stamps
from pipeline.cache.fingerprint import file_sha256, fingerprint
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.recipe.recognition_methods import HORKD, KD, RKD
from pipeline.steps.values import Outputs, Prepared, Samples
from pipeline.tasks.recognition.elsewhere import Found, found_elsewhere, present
from pipeline.tasks.recognition.fusion import FUSED
from pipeline.tasks.recognition.jobs import RecognitionJob, make_job
from pipeline.tasks.recognition.networks import DEPTHS, load_weights
from pipeline.tasks.recognition.recipe import Recognition, RecognitionTeacher
from pipeline.tasks.recognition.teach import Source
from pipeline.training.weights import pack

if TYPE_CHECKING:
    from pipeline.tasks.recognition.task import RecognitionTask

TEACHER = "teacher"


def label_of(recipe: Recognition, teacher: RecognitionTeacher) -> str:
    """How runs call a teacher."""
    return f"{TEACHER}-{teacher.label}" if len(recipe.seen_by) > 1 else TEACHER


def set_name(recipe: Recognition) -> str:
    """How tables call the test set: after the data's folder or file."""
    if recipe.data.layout == "digits":
        return "digits"
    parts = [p for p in recipe.data.root.rstrip("/").split("/") if p]
    return parts[-1].removesuffix(".npz") if parts else recipe.data.layout


def teacher_job(
    task: RecognitionTask, recipe: Recognition, spec: RecognitionTeacher, samples: Samples
) -> RecognitionJob | None:
    """A teacher's training; None where its weights are given."""
    present(spec)
    if spec.checkpoint is not None or spec.timm or spec.factory:
        return None
    label, seed = label_of(recipe, spec), recipe.seed if spec.seed is None else spec.seed
    if recipe.teachers:
        recipe = recipe.model_copy(update={"teacher": spec, "teachers": ()})
    return replace(make_job(task, recipe, TEACHER, samples, 1, seed, {}, {}), label=label)


def imported(
    task: RecognitionTask, recipe: Recognition, spec: RecognitionTeacher, samples: Samples, store: Store
) -> Source:
    """A checkpoint's tensors, copied into the cache after a look whether they fit. Raises InputError."""
    if (found := found_elsewhere(spec, recipe, samples.classes)) is not None:
        return _elsewhere(task, recipe, samples, store, found)
    assert spec.checkpoint is not None
    answers = task.answers(samples.classes)
    net = load_weights(task.build(spec.network, recipe.hr_size, answers), spec.checkpoint)
    identity = digest = file_sha256(spec.checkpoint)[:16]
    if spec.network.name not in DEPTHS:  # of these the tensors say everything
        identity = fingerprint({"file": digest, "network": spec.network.model_dump()})[:16]
    folder = f"networks/checkpoint-{digest}"
    rel = f"{folder}/weights.safetensors"
    if not stamps.intact(store, f"{folder}/stamp.json", digest):
        store.write_bytes(rel, pack(net.state_dict()))
        stamps.put(store, f"{folder}/stamp.json", digest, [rel])
    return Source(task, TEACHER, spec.network.model_dump(), recipe.hr_size, answers, rel, identity)


def _elsewhere(
    task: RecognitionTask, recipe: Recognition, samples: Samples, store: Store, found: Found
) -> Source:
    """A network made elsewhere; its file is copied into the cache."""
    folder = f"networks/elsewhere-{found.identity}"
    rel = f"{folder}/network" if found.data else ""
    if rel and not stamps.intact(store, f"{folder}/stamp.json", found.identity):
        store.write_bytes(rel, found.data)
        stamps.put(store, f"{folder}/stamp.json", found.identity, [rel])
    answers = 0 if found.embeds else task.answers(samples.classes)
    return Source(
        task, TEACHER, found.facts, recipe.hr_size, answers, rel, found.identity, public=found.public
    )


def chosen(recipe: Recognition, prepared: Prepared) -> Outputs:
    """Whom the recipe's method learns from: all teachers together, or the one that `kd` names. Raises InputError."""
    teachers = prepared.all
    named = recipe.method.teacher if isinstance(recipe.method, KD) else FUSED
    if named == FUSED:
        return teachers[-1]
    own = [TEACHER] if len(recipe.seen_by) == 1 else []
    known = [[label_of(recipe, t), t.label, *own] for t in recipe.seen_by]
    wanted = next((n for n, names in enumerate(known) if named in names), None)
    if wanted is None:
        names = ", ".join([FUSED, *(t.label for t in recipe.seen_by)])
        raise InputError("method.teacher", f"one of {names}", repr(named))
    return teachers[wanted]


def learned_from(
    recipe: Recognition, helpers: Mapping[str, Outputs]
) -> tuple[dict[str, str], dict[str, Source]]:
    """(manifests of cached outputs, networks) by what they are to the one that learns."""
    cached = {n: h.cached for n, h in helpers.items() if h.cached}
    if recipe.cache.online:  # an assistant's outputs are cached all the same
        cached = {n: c for n, c in cached.items() if n != "teacher"}
    return {n: c.path("train") for n, c in cached.items()}, {n: h.network for n, h in helpers.items()}


def fitting(recipe: Recognition, method: str, outputs: Outputs) -> None:
    """Refuse a method that needs soft labels of a teacher that has none. Raises InputError naming those that fit."""
    if outputs.network.classes:
        return
    settings = recipe.method
    remedy = ""
    if isinstance(settings, KD):
        remedy = (
            "Take rkd with soft: 0 (feature, pairwise, distances, angles, contrast), or horkd (its orders)."
        )
    elif isinstance(settings, RKD) and settings.soft != 0:
        remedy = "Set soft: 0, and weigh feature, pairwise, distances, angles or contrast."
    elif isinstance(settings, HORKD) and not settings.assistant and settings.soft != 0:
        remedy = "Set soft: 0, or let an assistant give soft labels (assistant: true)."
    if remedy:
        raise InputError(
            f"method {method}",
            "a teacher with logits, for soft labels",
            f"{outputs.label}, an embedder",
            remedy,
        )
