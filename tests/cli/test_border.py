"""Whatever a file contains, a command ends with 0 or 2 and one message that names it, without a Python exception.

Every case takes one intact file, changes it in a seeded way, and runs one command on it in this process. The fast
tests try a few changes for each case, the slow ones 300.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from border_kit import Case, Place, change
from command_kit import Done, run
from road_kit import REPOSITORY, TEACHERS, content, picture

FAST, SLOW = 8, 300
EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b|Traceback|\bobject at 0x")


NETWORKS = {"name": "fsrcnn", "options": {"d": 8, "s": 4, "m": 1, "head": "pixelshuffle"}}
SPACE = "SPACE = {'train.lr': ('choice', 1e-3, 2e-3)}\n"


LIMITS = [  # beat what the change may have made of them, so that no case trains for hours
    *("train.steps=2", "train.batch=2", "train.patch=12", "train.evaluate_every=2", "train.log_every=2"),
    *("data.tile=48", "cache.shard_mb=0.1", "data.holdout=0.3"),
    *("compare.seeds=1", "tracking.enabled=false"),
]


def limited(place: Place, file: str = "recipe.yaml") -> list[object]:
    changes = [*LIMITS, f"output={place.at('runs')}", f"cache.root={place.at('cache')}"]
    return [place.at(file), "--inline", *[part for change in changes for part in ("--set", change)]]


def with_teacher(place: Place) -> list[object]:
    return [
        *limited(place),
        "--set",
        f"teachers=[{{checkpoint: '{place.at('edsr.safetensors')}', name: edsr}}]",
    ]


def evaluate(place: Place, model: object) -> list[object]:
    return ["evaluate", "--model", model, "--data", place.at("Bench"), "--scale", 2]


def upscale(place: Place, student: object) -> list[object]:
    return ["upscale", place.at("Bench"), place.at("large"), "--student", student]


RECIPES = [
    Case("recipe check", "recipe.yaml", lambda p: ["recipe", "check", p.at("recipe.yaml")], "recipe+"),
    Case("schema", "recipe.yaml", lambda p: ["recipe", "check", p.at("recipe.yaml"), "--schema"], "recipe+"),
    Case("recognition recipe", "digits.yaml", lambda p: ["recipe", "check", p.at("digits.yaml")], "recipe+"),
    Case("plan", "recipe.yaml", lambda p: ["plan", p.at("recipe.yaml"), "--pictures", 9], "recipe"),
    Case("run", "recipe.yaml", lambda p: ["run", *limited(p)], "recipe"),
    Case("teach", "recipe.yaml", lambda p: ["teach", *with_teacher(p)], "recipe"),
    Case("distill", "recipe.yaml", lambda p: ["distill", *limited(p)], "recipe"),
    Case("compare", "recipe.yaml", lambda p: ["compare", *limited(p), "--seeds", 1], "recipe"),
    Case(
        "tune",
        "recipe.yaml",
        lambda p: ["tune", *limited(p), "--space", p.at("space.py"), "--trials", 1, "--budget", 2],
        "recipe",
    ),
    Case(
        "submit",
        "recipe.yaml",
        lambda p: [
            *("submit", "--address", "http://127.0.0.1:9", "--working-dir", p.work),
            *("run", "recipe.yaml", "--set", "output=runs", "--set", "cache.root=cache"),
        ],
        "recipe",
    ),
    Case(
        "tune's space",
        "space.py",
        lambda p: ["tune", *limited(p), "--space", p.at("space.py"), "--trials", 1, "--budget", 2],
        "text",
    ),
]
NETWORK_FILES = [
    Case("evaluate a teacher", "edsr.safetensors", lambda p: evaluate(p, p.at("edsr.safetensors"))),
    Case("evaluate a student", "student.safetensors", lambda p: evaluate(p, p.at("student.safetensors"))),
    Case("evaluate a pth", "edsr.pth", lambda p: evaluate(p, p.at("edsr.pth"))),
    Case("evaluate an ONNX graph", "student.onnx", lambda p: evaluate(p, p.at("student.onnx"))),
    Case("upscale by a student", "student.safetensors", lambda p: upscale(p, p.at("student.safetensors"))),
    Case("upscale by an ONNX graph", "student.onnx", lambda p: upscale(p, p.at("student.onnx"))),
    Case("export", "student.safetensors", lambda p: ["export", p.at("student.safetensors"), p.at("out")]),
    Case(
        "plan a teacher",
        "edsr.safetensors",
        lambda p: [
            *("plan", p.at("recipe.yaml"), "--pictures", 9),
            *("--set", f"teachers=[{{checkpoint: '{p.at('edsr.safetensors')}'}}]"),
        ],
    ),
    Case("teach a teacher", "edsr.safetensors", lambda p: ["teach", *with_teacher(p)]),
]
PICTURES = [
    *(
        case
        for name in ("one.png", "two.jpg", "three.tif")
        for case in (
            Case(f"evaluate {name}", f"Bench/{name}", lambda p: evaluate(p, "bicubic")),
            Case(f"upscale {name}", f"Bench/{name}", lambda p: upscale(p, p.root / "student.safetensors")),
        )
    ),
    Case("train on a picture", "pictures/a.png", lambda p: ["teach", *with_teacher(p)]),
]
SPOOLS = [
    Case(
        "track sync",
        "spool/local-1/1-a.spool.jsonl",
        lambda p: ["track", "sync", p.at("spool"), "--uri", f"sqlite:///{p.root / 'mlflow.db'}"],
        "text",
    )
]
CACHES = [
    Case(
        f"cache {verb} with {name}",
        f"cache/{name}",
        lambda p, verb=verb: ["cache", verb, p.at("cache")],
        codes=codes,
    )
    for verb, codes in (("ls", (0, 2)), ("verify", (0, 1, 2)), ("gc", (0, 2)))
    for name in ("manifest", "shard", "stats")
]


# ---- the intact inputs


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from safetensors.torch import load_file

    from pipeline.engine.store import Store

    root = tmp_path_factory.mktemp("border")
    for seed, name in enumerate("ab"):
        picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    for seed, name in enumerate(("one.png", "two.jpg", "three.tif")):
        picture(root / "Bench" / name, 32, 40, 50 + seed)
    shutil.copy(TEACHERS / "edsr_x2.safetensors", root / "edsr.safetensors")
    torch.save({"params": load_file(root / "edsr.safetensors")}, root / "edsr.pth")
    recipe = content(Path("."), method={"name": "scratch"}, teachers=[], student=NETWORKS, train={"steps": 2})
    recipe["data"]["train"] = [str(root / "pictures")]
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copy(REPOSITORY / "recipes" / "recognition_digits.yaml", root / "digits.yaml")
    (root / "space.py").write_text(SPACE)
    place = Place(root, root)
    taught = run("teach", *with_teacher(place))
    assert taught.code == 0, taught.err
    trained = run("run", *limited(place))
    assert trained.code == 0, trained.err
    student = next((root / "runs").rglob("students/*/*.safetensors"))
    shutil.copy(student, root / "student.safetensors")
    shutil.copy(student.with_suffix(".onnx"), root / "student.onnx")
    Store(f"sqlite:///{root / 'mlflow.db'}").initialise()
    spool(root / "spool/local-1/1-a.spool.jsonl", root)
    return root


def spool(file: Path, root: Path) -> None:
    header = {
        "id": "local-1",
        "local": True,
        "experiment": "e",
        "name": "run",
        "tags": {},
        "start": 1,
        "parent": None,
    }
    header["artifacts"] = (root / "mlartifacts").as_uri()
    lines: list[dict] = [{"header": header, "uri": f"sqlite:///{root / 'mlflow.db'}"}]
    base = {"time": 1, "step": 0, "name": "", "values": {}}
    lines += [{**base, "kind": "metrics", "step": i, "values": {"loss": 0.5}} for i in range(3)]
    lines += [
        {**base, "kind": "params", "values": {"lr": "1"}},
        {**base, "kind": "tags", "values": {"a": "b"}},
    ]
    lines += [
        {**base, "kind": "text", "name": "n.txt", "payload": "text"},
        {**base, "kind": "status", "name": "FINISHED"},
    ]
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def place_of(intact: Path, work: Path) -> Place:
    """A working copy of the small inputs."""
    shutil.rmtree(work, ignore_errors=True)
    leave_out = shutil.ignore_patterns("cache", "runs", "mlflow.db*", "mlartifacts")
    shutil.copytree(intact, work, ignore=leave_out)
    return Place(intact, work)


def damage(place: Place, case: Case, rng: random.Random) -> str:
    """Change the case's file; returns its name."""
    file = place.at(case.file)
    if case.file.startswith("cache/"):
        shutil.copytree(place.root / "cache", place.at("cache"))
        patterns = {"manifest": "manifest-*.json", "shard": "*.arrow", "stats": "*.stats.json"}
        file = rng.choice(sorted(place.at("cache").rglob(patterns[file.name])))
    data = change(case, file.read_bytes(), rng)
    file.unlink()
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)
    return file.name


def complaint(case: Case, name: str, done: Done) -> str:
    """What is wrong with how the command ended; empty where nothing is."""
    said = " ".join(done.err.split())
    if done.code not in case.codes:
        return f"exit {done.code}: {said[-400:]}"
    if found := EXCEPTION.search(done.err + done.out):
        return f"says {found[0]}: {said[-400:]}"
    # A recipe may be turned to any folder of this machine: what is wrong with a picture there is the picture's.
    elsewhere = any(Path(path).is_file() for path in re.findall(r"(/[^:]+): expected", said))
    if done.code == 2 and name not in said and Path(name).stem not in said and not elsewhere:
        return f"does not name {name}: {said[-400:]}"
    return ""


def tried(case: Case, intact: Path, work: Path, times: int) -> None:
    wrong = {}
    for seed in range(times):
        place = place_of(intact, work)
        rng = random.Random(f"{case.name} {seed}")
        name = damage(place, case, rng)
        np.random.seed(seed)
        try:
            found = complaint(case, name, run(*case.arguments(place)))
        except BaseException as error:  # it went through the command's last resort
            found = f"raised {error!r}"
        if found:
            wrong[seed] = found
    assert not wrong, f"{len(wrong)} of {times}\n" + "\n".join(f"seed {s}: {w}" for s, w in wrong.items())


CASES = [*RECIPES, *SPOOLS, *NETWORK_FILES, *PICTURES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_damaged_file_is_named_and_nothing_is_raised(case: Case, intact: Path, tmp_path: Path) -> None:
    tried(case, intact, tmp_path / "work", FAST)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_three_hundred_damaged_files(case: Case, intact: Path, tmp_path: Path) -> None:
    tried(case, intact, tmp_path / "work", SLOW)


@pytest.mark.parametrize("case", CACHES, ids=str)
def test_a_damaged_cache_is_named_and_nothing_is_raised(case: Case, intact: Path, tmp_path: Path) -> None:
    tried(case, intact, tmp_path / "work", FAST)


@pytest.mark.slow
@pytest.mark.parametrize("case", CACHES, ids=str)
def test_three_hundred_damaged_caches(case: Case, intact: Path, tmp_path: Path) -> None:
    tried(case, intact, tmp_path / "work", SLOW)
