"""PISR on the road, over real tiles: what is trained once, stopped, handed in, refused, and other students."""

from __future__ import annotations

from pathlib import Path

import pytest
from road_kit import Road, picture, recipe, rewritten, snapshot, weights
from test_pisr import SMALL

from pipeline.errors import InputError
from pipeline.recipe.recipe import Recipe

TRAIN = {"steps": 4, "batch": 2, "patch": 12, "lr": 1e-3, "evaluate_every": 2, "log_every": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pisr")
    for seed, name in enumerate("abcd"):
        picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return root


VARIANTS = {
    "init": {"name": "pisr", "vid": 0},
    "larger": {"name": "pisr", "teacher": "larger", "larger": {"d": 12, "m": 2}, "init": False},
    "fused": {"name": "pisr", "distill": 1.0},
}


def settings(root: Path, **changes: object) -> Recipe:
    base = {
        "teachers": [],
        "fusion": {"kind": "mean"},
        "student": {"name": "fsrcnn", "options": SMALL},
        "method": {"name": "pisr"},
        "train": TRAIN,
        "compare": {"variants": {k: v for k, v in VARIANTS.items() if k != "fused"}},
    }
    return recipe(root, **{**base, **changes})


def test_students_and_variants_share_one_teacher_and_a_second_run_trains_nothing(place: Path) -> None:
    road = Road(settings(place))
    *_, jobs = road.run.distill(["pisr", "init", "larger", "scratch"], [0, 1])
    assert [j.label for j in jobs][:4] == [
        "pisr-fsrcnn-s0",
        "pisr-fsrcnn-s1",
        "init-fsrcnn-s0",
        "init-fsrcnn-s1",
    ]
    assert {j.method for j in jobs} == {"pisr", "init", "larger", "scratch"}
    assert {*road.run.tracked.trainings} == {j.label for j in jobs}, (
        "a teacher's record ends with its training"
    )
    taught = sorted(p.parent.name for p in (place / "cache" / "privileged").glob("*/weights.safetensors"))
    assert len(taught) == 2  # one that sees HR, one that is larger
    assert jobs[0].taught_by == jobs[1].taught_by == jobs[2].taught_by != jobs[4].taught_by
    curves = jobs[0].result()["curves"]["distill"]
    assert {"train/hr", "train/vid", "train/loss", "held_out/psnr_y"} <= set(curves)
    before = snapshot(place / "runs") | snapshot(place / "cache")
    Road(settings(place)).run.distill(["pisr", "init", "larger", "scratch"], [0, 1])
    assert not rewritten(before, snapshot(place / "runs") | snapshot(place / "cache"))


def test_the_student_that_is_saved_is_the_plain_network(place: Path) -> None:
    *_, (plain, guided) = Road(settings(place)).run.distill(["scratch", "pisr"], [0])
    assert {k: len(v) for k, v in weights(plain).items()} == {k: len(v) for k, v in weights(guided).items()}
    sizes = [len(j.output().read_bytes("weights.safetensors")) for j in (plain, guided)]
    assert abs(sizes[0] - sizes[1]) < 64  # the method's name in the metadata


@pytest.mark.parametrize("phase", ["teacher", "distill"])
def test_a_run_stopped_in_either_phase_goes_on_from_its_step_to_the_same_weights(
    place: Path, tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training import checkpoint

    cache = {"root": str(tmp_path / "cache")}
    straight = settings(place, output=str(tmp_path / "straight"), cache=cache)
    *_, (whole,) = Road(straight.model_copy(update={"cache": straight.cache})).distill()
    stopped = settings(place, output=str(tmp_path / "stopped"), cache={"root": str(tmp_path / "cache2")})
    saved, save = [], checkpoint.save

    def stop_after(folder: object, step: int, *args: object, **more: object) -> None:
        save(folder, step, *args, **more)  # type: ignore[arg-type]
        saved.append(step)
        if phase in str(folder.where("")) and step == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop_after)
    with pytest.raises(KeyboardInterrupt):
        Road(stopped).distill()
    monkeypatch.setattr(checkpoint, "save", lambda f, s, *a, **m: (save(f, s, *a, **m), saved.append(s)))
    saved.clear()
    *_, (resumed,) = Road(stopped).distill()
    assert saved == ([4, 2, 4] if phase == "teacher" else [4])
    assert weights(resumed) == weights(whole)


def test_a_teacher_trained_before_is_taken_and_a_foreign_one_refused(place: Path, tmp_path: Path) -> None:
    *_, (job,) = Road(settings(place)).distill()
    given = settings(
        place,
        method={"name": "pisr", "checkpoint": f"{job.taught_by.removeprefix('file://')}/weights.safetensors"},
    )
    *_, (again,) = Road(given).distill()
    assert weights(again) == weights(job)
    student = job.output().where("weights.safetensors").removeprefix("file://")
    for change, message in (
        ({"method": {"name": "pisr", "checkpoint": student}}, "kind 'student'"),
        (
            {"method": {**given.method.model_dump()}, "scale": 3, "train": {**TRAIN, "patch": 6}},
            "scale 2",
        ),
        (
            {
                "method": {**given.method.model_dump()},
                "student": {"name": "idn", "options": {"features": 16, "blocks": 1, "colours": 1}},
            },
            "architecture 'fsrcnn'",
        ),
        (
            {
                "method": {**given.method.model_dump()},
                "student": {"name": "fsrcnn", "options": {**SMALL, "d": 9}},
            },
            "student's options",
        ),
        ({"method": {"name": "pisr", "checkpoint": str(tmp_path / "none")}}, "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            Road(settings(place, **change)).run.check(["pisr"])


@pytest.mark.parametrize("name", ["vdsr", "idn", "carn"])
def test_other_students_learn_from_privileged_teachers_too(place: Path, name: str) -> None:
    options = {
        "vdsr": {"features": 8, "depth": 3},
        "idn": {"features": 16, "blocks": 1},
        "carn": {"features": 8},
    }
    chosen = {"name": name, "options": {**options[name], "colours": 1}}
    *_, (job,) = Road(settings(place, student=chosen, train={**TRAIN, "steps": 2})).distill()
    assert {"train/vid"} <= set(job.result()["curves"]["distill"])


def test_pisr_with_fused_targets_teaches_them_first(place: Path) -> None:
    from road_kit import teacher as entry

    variant = {"fused": VARIANTS["fused"]}
    both = settings(place, teachers=[entry("edsr"), entry("compact")], compare={"variants": variant})
    _, taught, fused, (job,) = Road(both).distill("fused")
    assert len(taught) == 2 and fused is not None and "target" in job.columns
    assert {"train/vid", "train/distill", "train/hr"} <= set(job.result()["curves"]["distill"])


def test_a_variant_must_not_take_a_methods_name_and_a_baseline_must_exist(place: Path) -> None:
    with pytest.raises(ValueError, match="methods' own names"):
        settings(place, compare={"variants": {"kd": {"name": "scratch"}}})
    with pytest.raises(ValueError, match="neither methods"):
        settings(place, compare={"methods": ["scratsh"]})
