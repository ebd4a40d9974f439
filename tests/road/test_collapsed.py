"""A student that is worse than no network at all is named, with what may help."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_kit import run
from road_kit import content, picture

from pipeline.steps.values import Result
from pipeline.tasks.super_resolution.scoring import worse_than_none


def result(name: str, role: str, **sets: float) -> Result:
    return Result(name, role, name, {n: {"psnr_y": v, "fidelity": v + 5} for n, v in sets.items()})


def test_who_is_below_bicubic_on_every_set_is_named() -> None:
    base = result("bicubic", "bicubic", Set5=33.7, BSD100=29.6)
    fine = result("a", "student", Set5=33.6, BSD100=29.7)
    bad = result("b", "student", Set5=33.68, BSD100=21.0)
    teacher = result("t", "teacher", Set5=20.0, BSD100=20.0)
    (warning,) = worse_than_none([base, fine, bad, teacher], "psnr_y")
    assert warning.startswith("b: 33.68 dB is below bicubic (33.70)") and "train.warmup" in warning
    (other,) = worse_than_none([base, fine, bad, teacher], "fidelity")
    assert other.startswith("b: 38.68 dB is below bicubic (38.70)")
    assert worse_than_none([fine, bad], "psnr_y") == worse_than_none([base, bad], "lpips") == []


@pytest.mark.parametrize("rate, collapsed", [(30.0, True), (1e-6, False)])
def test_a_run_says_so(tmp_path: Path, rate: float, collapsed: bool) -> None:
    for seed, name in enumerate("abcd"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96, seed)
    train = {"steps": 4, "batch": 2, "patch": 12, "lr": rate, "ema": 0, "evaluate_every": 4}
    changes = {"data": {"test": [str(tmp_path / "pictures")]}, "method": {"name": "scratch"}, "train": train}
    settings = content(
        tmp_path, **changes, teachers=[], student={"name": "fsrcnn", "options": {"skip": "bicubic"}}
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    done = run("run", tmp_path / "recipe.yaml", "--inline")
    assert done.code == 0, done.err
    assert ("is below bicubic" in done.err) is collapsed, done.err
