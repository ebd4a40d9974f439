"""The cost model: its counts are those of a real cache, its arithmetic adds up, its command says both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_kit import run
from road_kit import Road, content, picture, recipe, recipe_file

from pipeline.steps.forecast import ASSUMED_GPU, MEASURED_CORE, gpu_rates, predict
from pipeline.tasks.super_resolution.work import teacher_costs, work

RATES = replace(
    gpu_rates(), teach=1e9, train=1e8, cut=1e6, hash=1e9, disk=1e8, network=1e8, devices=2, cores=4, start=0.0
)


def test_tiles_and_bytes_are_those_of_a_real_cache(tmp_path: Path) -> None:
    for seed in range(3):
        picture(tmp_path / "pictures" / f"{seed}.png", 144, 200, seed)
    settings = recipe(tmp_path, cache={"shard_mb": 0.5})
    tiles, taught, _, _ = Road(settings).distill()
    macs = [t.network.multiply_adds for t in taught]
    todo = work(settings, 3, 144, 200, macs, 1000)
    assert todo.tiles == sum(m.rows for _, m in tiles.splits())
    stored = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.arrow"))
    assert stored == pytest.approx(todo.cache_bytes, rel=0.02)
    assert todo.teacher_ops == round(sum(macs) * 24**2 / 48**2), "tiles of 48 HR pixels at x2"


def test_the_arithmetic(tmp_path: Path) -> None:
    settings = recipe(tmp_path, cache={"shard_mb": 1})
    todo = work(settings, 100, 48, 48, [10**9, 3 * 10**9], 10**8)
    assert (todo.tiles, todo.tile_bytes, todo.output_bytes, todo.fused_bytes) == (100, 8640, 13824, 6912)
    assert todo.cache_bytes == 100 * (8640 + 13824 + 6912) and todo.fusion_ops == 0
    assert todo.teacher_ops == 10**9 and todo.step_ops == 3 * 4 * 10**8 * 12**2 // 48**2
    one, two = (predict(todo, RATES, gpus) for gpus in (1, 2))
    assert one.teach == pytest.approx(100.0) and two.teach == pytest.approx(100.0), (
        "one shard keeps one device busy"
    )
    assert predict(replace(todo, shard_bytes=1e5), RATES, 2).teach == pytest.approx(50.0)
    fetched = 100 * (8640 + 6912) / 1e8
    assert one.distill == pytest.approx(6 * todo.step_ops / 1e8 + fetched)
    assert one.limits["teach"] == "compute" and one.tiles == pytest.approx(100 * 48 * 48 / 2e6)
    assert one.device_hours == pytest.approx(one.seconds / 3600)


def test_trainings_are_counted_and_stand_side_by_side(tmp_path: Path) -> None:
    compare = {"methods": ["scratch", "mine", "mtkd"], "seeds": 3, "variants": {"mine": {"name": "kd"}}}
    file = recipe_file(tmp_path, method={"name": "mtkd"}, compare=compare)
    done = run("plan", file, "--pictures", 80, "--gpus", 1, 64, "--json", "-")
    assert done.json["work"]["trainings"] == 9, "mtkd, scratch and mine, three seeds"
    todo = work(recipe(tmp_path), 100, 48, 48, [10**9], 10**8)
    one, nine, many = (
        predict(replace(todo, trainings=count), RATES, gpus) for count, gpus in ((1, 1), (9, 1), (9, 64))
    )
    fetched = 100 * (8640 + 6912) / 1e8
    assert nine.distill - fetched == pytest.approx(9 * (one.distill - fetched))
    assert many.distill == pytest.approx(6 * todo.step_ops / (1e8 * 2) + fetched), (
        "two GPUs of a node for each"
    )
    assert "9 trainings" in run("plan", file, "--pictures", 80).out


def test_a_slow_network_is_what_holds_teaching_up(tmp_path: Path) -> None:
    todo = work(recipe(tmp_path), 1000, 480, 480, [10**6], 10**6)
    slow = predict(todo, replace(RATES, network=1e5), 8)
    assert slow.limits["teach"] == "network" and "fetching" in slow.limits["distill"]
    assert slow.teach == pytest.approx(todo.tiles * (todo.tile_bytes + todo.output_bytes) / (4 * 1e5))


@pytest.mark.parametrize("pictures", [1, 800, 10**7])
def test_more_devices_are_never_slower_and_never_cheaper_by_much(tmp_path: Path, pictures: int) -> None:
    todo = work(recipe(tmp_path), pictures, 480, 480, [10**10], 10**8)
    found = [predict(todo, gpu_rates(price=2.0), gpus) for gpus in (1, 8, 64, 512)]
    assert all(a.seconds >= b.seconds for a, b in zip(found, found[1:]))
    assert all(p.spend == pytest.approx(2 * p.device_hours) for p in found)


def test_an_aggregation_network_is_trained_and_run(tmp_path: Path) -> None:
    fusion = {"kind": "aggregate", "train": {"steps": 10, "batch": 2, "patch": 12}}
    todo = work(recipe(tmp_path, fusion=fusion), 1, 48, 48, [1], 1, fusion_macs=2304)
    assert todo.fusion_training_ops == 3 * 10 * 2 * 12**2 and todo.fusion_ops == 24**2


def test_the_constants_say_where_they_are_from() -> None:
    assert all(getattr(MEASURED_CORE, name) > 0 for name in ("teach", "train", "cut", "hash", "disk"))
    assert ASSUMED_GPU.devices == 8 and gpu_rates().cut == MEASURED_CORE.cut


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--teacher-macs", "1e9"), "--teacher-macs: expected 2, one for each teacher of r, found 1"),
        (("--teacher-macs", "1e9", "nan"), "--teacher-macs: expected numbers above 0, found nan"),
        (("--teach-rate", "0"), "--teach-rate: expected a number above 0, found 0"),
        (("--gpus-per-node", "0"), "--gpus-per-node: expected a number above 0, found 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_their_names(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = run("plan", recipe_file(tmp_path), "--pictures", 8, *options)
    assert done.code == 2 and said in " ".join(done.err.split())


def test_a_self_ensemble_costs_eight_times_as_much(tmp_path: Path) -> None:
    one = recipe(tmp_path)
    eight = recipe(tmp_path, teachers=[{**t, "self_ensemble": True} for t in content(tmp_path)["teachers"]])
    assert teacher_costs(eight) == [8 * n for n in teacher_costs(one)]


def test_the_command(tmp_path: Path) -> None:
    file = recipe_file(tmp_path)
    done = run("plan", file, "--pictures", 800, "--gpus", 1, 64, "--json", "-")
    assert done.code == 0, done.err
    assert set(done.json) == {"work", "predictions"} and [p["gpus"] for p in done.json["predictions"]] == [
        1,
        64,
    ]
    assert done.json["work"]["pictures"] == 800 and done.json["work"]["teacher_ops"] > 10**7
    shown = run("plan", file, "--pictures", 800, "--teacher-macs", "1e9", "2e9")
    assert "held up by" in shown.out and "800 pictures" in shown.out
    for wrong in (("--pictures", 0), ("--pictures", 8, "--gpus", 0), ("--pictures", 8, "--price", -1)):
        assert run("plan", file, *wrong).code == 2


def test_a_recognition_recipe_has_a_plan_too(tmp_path: Path) -> None:
    import yaml
    from recognition_kit import content as recognition

    file = tmp_path / "recognition.yaml"
    file.write_text(yaml.safe_dump(recognition(tmp_path)))
    done = run("plan", file, "--pictures", 1000, "--height", 8, "--width", 8, "--json", "-")
    assert done.code == 0, done.err
    todo = done.json["work"]
    assert todo["tiles"] == 1000 and todo["tile_bytes"] == 3 * 8 * 8
    assert todo["output_bytes"] == 2 * 2 * (12 + 10), "two views of an embedding of 12 and 10 logits, float16"
    assert todo["teacher_ops"] > todo["step_ops"] / 100 > 0 and len(done.json["predictions"]) == 3


def test_every_gap_of_a_comparison_is_counted(tmp_path: Path) -> None:
    import yaml
    from recognition_kit import LARGE
    from recognition_kit import content as recognition

    found = []
    for gaps in ([], [4]):
        file = tmp_path / f"{len(gaps)}.yaml"
        file.write_text(yaml.safe_dump(recognition(tmp_path, gap=2, data=LARGE, compare={"gaps": gaps})))
        found.append(
            run("plan", file, "--pictures", 10, "--height", 16, "--width", 16, "--json", "-").json["work"]
        )
    assert [f["trainings"] for f in found] == [3, 6] and found[1]["step_ops"] < found[0]["step_ops"]
