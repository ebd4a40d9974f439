"""Comparisons of equal work and of equal time: lengths against counts made here, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_kit import run
from recognition_kit import content as recognition
from road_kit import Road, content, picture, recipe, snapshot
from torch import nn

import students
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.road.equal import paced
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.recipes import load_any
from pipeline.tasks.recognition.networks import build as recogniser
from pipeline.tasks.recognition.recipe import Network
from teachers.privileged import Encoder

OPTIONS = {"d": 8, "s": 4, "m": 1, "colours": 1}
STUDENT = {"name": "fsrcnn", "options": OPTIONS}
STEP = 4 * 12**2
"""LR pixels that a step of `content` looks at."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equal")
    for seed, name in enumerate("abc"):
        picture(folder / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return folder


def products(network: nn.Module, x: torch.Tensor, last: str = "") -> int:
    """Multiply-adds of a forward pass, counted layer by layer, up to the layer `last`."""
    found: list[tuple[str, int]] = []

    def hook(name: str):
        def counted(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            # A transposed convolution's kernel meets every pixel that goes in, another's every one that comes out.
            places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
            found.append((name, places.numel() * layer.weight[0].numel()))

        return counted

    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    handles = [m.register_forward_hook(hook(n)) for n, m in network.named_modules() if isinstance(m, layers)]
    with torch.no_grad():
        network.eval()(x)
    for handle in handles:
        handle.remove()
    names = [name for name, _ in found]
    until = (
        max((i for i, name in enumerate(names) if name.startswith(last)), default=0)
        if last
        else len(names) - 1
    )
    return sum(count for _, count in found[: until + 1])


def per_pixel(network: nn.Module, side: int = 24, colours: int = 1, last: str = "") -> float:
    """Multiply-adds for each LR pixel."""
    return products(network, torch.zeros(1, colours, side, side), last) / 24**2


def lengths(settings: object, *methods: str) -> dict[str, int]:
    road = Road(settings)  # type: ignore[arg-type]
    road.run.shared(methods)
    return road.run.lengths


def test_without_first_phases_equal_work_is_equal_steps(root: Path) -> None:
    settings = recipe(root, compare={"equal": "work"})
    assert lengths(settings, "scratch", "kd", "mtkd") == {"mtkd": 6, "scratch": 6, "kd": 6}


def test_a_method_that_runs_its_student_twice_has_half_the_steps(root: Path) -> None:
    views = {"zoom_in": 0, "zoom_out": 0}
    variants = {"plain": {"name": "dukd", "consistency": 0.0}}
    settings = recipe(root, data={"upcycle": views}, compare={"equal": "work", "variants": variants})
    assert lengths(settings, "dukd", "plain") == {"mtkd": 6, "dukd": 3, "plain": 6}


def test_who_counts_teaching_pays_for_the_teachers_that_it_reads(root: Path) -> None:
    settings = recipe(root, compare={"equal": "work", "count": ["teaching"]}, train={"steps": 500})
    road = Road(settings)
    prepared = road.run.shared(["scratch", "kd", "mtkd"])
    macs = {t.label: t.network.multiply_adds / 48**2 for t in prepared.teachers}
    best = max(prepared.teachers, key=lambda t: t.quality).label
    pixels = prepared.samples.train.rows * 24**2  # tiles of 48 HR pixels at x2
    student = students.build("fsrcnn", 2, d=8, s=4, m=1, head="pixelshuffle")
    step = 3 * STEP * per_pixel(student, colours=3 if student.colours == 3 else 1)
    whole = 500 * step + pixels * sum(macs.values())
    assert road.run.lengths["scratch"] == int(whole / step) > 500
    assert road.run.lengths["kd"] == int((whole - pixels * macs[best]) / step) < road.run.lengths["scratch"]
    assert road.run.lengths["mtkd"] == 500, "the recipe's own"


def test_pisrs_first_phase_and_its_teacher_in_the_step_are_paid_for(root: Path) -> None:
    pretrain = {"steps": 40, "batch": 2, "patch": 12}
    variants = {"long": {"name": "pisr"}, "short": {"name": "pisr", "pretrain": pretrain, "vid": 1e-6}}
    variants["start"] = {"name": "pisr", "vid": 0.0, "distill": 1.0}
    settings = recipe(
        root,
        student=STUDENT,
        method={"name": "scratch"},
        train={"steps": 4000},
        compare={"equal": "work", "variants": variants},
    )
    found = lengths(settings, "scratch", "long", "short", "start")
    student = students.build("fsrcnn", 2, **OPTIONS)
    own, encoder = per_pixel(student), per_pixel(Encoder(2, colours=1), side=48)
    features = per_pixel(student, last="expanding")
    assert features < own
    whole = 4000 * 3 * own
    taught = 3 * (encoder + own)
    assert found["long"] == int(whole / (3 * own + encoder + features + taught))
    first = 40 * 3 * (encoder + own) * 2 / 4  # half the batch
    assert found["short"] == int((whole - first) / (3 * own + encoder + features))
    assert found["start"] == int(whole / (3 * own + taught)), (
        "without VID the teacher does not run in the step"
    )
    assert found["scratch"] == 4000


def test_an_assistant_is_paid_for_with_its_outputs(root: Path) -> None:
    large = {**OPTIONS, "d": 16}
    train = {"steps": 30, "batch": 2, "patch": 12}
    variants = {
        "follows": {"name": "kd", "assistant": {"name": "fsrcnn", "options": large}},
        "apart": {"name": "kd", "assistant": {"name": "fsrcnn", "options": large, "train": train}},
    }
    settings = recipe(
        root,
        student=STUDENT,
        method={"name": "kd"},
        train={"steps": 900},
        compare={"equal": "work", "variants": variants},
    )
    road = Road(settings)
    prepared = road.run.shared(["kd", "follows", "apart"])
    pixels = prepared.samples.train.rows * 24**2
    own, assistant = (per_pixel(students.build("fsrcnn", 2, **o)) for o in (OPTIONS, large))
    whole, step = 900 * 3 * own * STEP, 3 * own * STEP
    outputs = assistant * pixels
    assert road.run.lengths["follows"] == int((whole - outputs) / (step + 3 * assistant * STEP))
    assert road.run.lengths["apart"] == int((whole - outputs - 30 * 3 * assistant * STEP / 2) / step)


def test_a_method_that_cannot_pay_its_first_phase_is_refused(root: Path) -> None:
    long = {"name": "pisr", "pretrain": {"steps": 10_000, "batch": 4, "patch": 12}}
    settings = recipe(root, student=STUDENT, compare={"equal": "work", "variants": {"long": long}})
    with pytest.raises(InputError, match="compare.equal: work: expected a method that costs less"):
        lengths(settings, "long")


def test_a_fusing_network_counts_where_it_is_asked_to(root: Path) -> None:
    train = {"steps": 4, "batch": 2, "patch": 12, "lr": 1e-3, "evaluate_every": 2, "log_every": 2}
    fusion = {"kind": "aggregate", "dim": 8, "depths": [1], "heads": [2], "window": 4, "train": train}
    found = {}
    for count in ((), ("fusing",), ("teaching", "fusing")):
        settings = recipe(root, fusion=fusion, compare={"equal": "work", "count": count})
        found[count] = lengths(settings, "scratch", "mtkd")["scratch"]
    assert found[()] == 6 < found["fusing",] < found["teaching", "fusing"]


def test_recognition_pays_for_an_assistant_at_hr(tmp_path: Path) -> None:
    settings = recognition(
        tmp_path, method={"name": "scratch"}, train={"steps": 2000}, compare={"equal": "work"}
    )
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    road = Run(load_any(tmp_path / "r.yaml", ()), InlineEngine("cpu"), Quiet())
    prepared = road.shared(["scratch", "kd", "horkd"])
    network = Network(name="resnet8", options={"width": 4}, embedding=8)
    small, large = (products(recogniser(network, (s, s), 10), torch.zeros(1, 3, s, s)) for s in (4, 8))
    views = prepared.samples.train.rows * 2
    assert road.lengths["kd"] == 2000
    assert road.lengths["horkd"] == int((2000 * 24 * small - large * views) / (24 * small + 24 * large))


# ---- whole runs


def file(root: Path, output: Path, **changes: object) -> Path:
    changes = {"output": str(output / "runs"), "cache": {"root": str(root / "cache")}, **changes}
    (output / "recipe.yaml").write_text(yaml.safe_dump(content(root, **changes)))
    return output / "recipe.yaml"


def test_a_run_says_steps_and_work_of_each_row(root: Path, tmp_path: Path) -> None:
    path = file(root, tmp_path, compare={"equal": "work", "count": ["teaching"], "methods": ["scratch"]})
    done = run("run", path, "--inline", "--json", tmp_path / "out.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out.json").read_text())
    mine, theirs = (found["equal"]["methods"][m] for m in ("mtkd", "scratch"))
    assert mine["steps"] == 6 < theirs["steps"] and theirs["work"] <= mine["work"]
    assert theirs["work"] > 0.99 * mine["work"]
    head = next(line for line in done.out.splitlines() if line.startswith("method"))
    assert "steps" in head and "work" in head and f"{theirs['steps']:,}" in done.out
    page = Path(found["report"]).read_text()
    assert "<th>steps</th><th>work</th>" in page and "equal multiply-adds for each method" in page
    before = snapshot(tmp_path / "runs" / "r" / "trainings")
    assert run("run", path, "--inline").code == 0
    assert snapshot(tmp_path / "runs" / "r" / "trainings") == before


@pytest.mark.slow
def test_equal_time_is_measured_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"mtkd": 0.3, "scratch": 0.1}
    monkeypatch.setattr("pipeline.road.equal.paced", lambda job, device: seconds[job.method])
    path = file(root, tmp_path, compare={"equal": "time", "methods": ["scratch"]})
    done = run("run", path, "--inline", "--json", tmp_path / "out.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out.json").read_text())["equal"]
    assert {m: r["steps"] for m, r in found["methods"].items()} == {"mtkd": 6, "scratch": 18}
    seconds["scratch"] = 1.0  # another machine's
    before = snapshot(tmp_path / "runs" / "r" / "trainings")
    assert run("run", path, "--inline", "--json", tmp_path / "again.json").code == 0
    assert json.loads((tmp_path / "again.json").read_text())["equal"] == found
    assert snapshot(tmp_path / "runs" / "r" / "trainings") == before, "the same trainings"


def test_a_pace_is_of_steps_alone_and_leaves_nothing(root: Path) -> None:
    road = Road(recipe(root, method={"name": "scratch"}))
    prepared = road.run.shared(["scratch"])
    job = road.run.student(prepared, "scratch", 2, 0)
    before = snapshot(root)
    assert 0 < paced(job, "cpu") < 60
    assert snapshot(root) == before and job.result() is None


def test_what_cannot_be_compared_so_is_refused_before_anything_is_made(root: Path, tmp_path: Path) -> None:
    settings = load_any(str(written(tmp_path, gap=[1, 2], compare={"equal": "work"})), ())
    with pytest.raises(InputError, match="compare.equal: expected one gap .*compare.equal: steps"):
        Run(settings, InlineEngine("cpu"), Quiet()).everything(["scratch"], [0])
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="count needs equal: work"):
        recipe(root, compare={"count": ["teaching"]})


def written(folder: Path, **changes: object) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recognition(folder, **changes)))
    return folder / "recipe.yaml"


def test_recipes_of_equal_steps_are_as_before(root: Path) -> None:
    plain = recipe(root)
    assert "equal" not in plain.model_dump(mode="json")["compare"]
    assert recipe(root, compare={"equal": "steps", "count": []}) == plain
    assert lengths(plain, "scratch", "mtkd") == {}
