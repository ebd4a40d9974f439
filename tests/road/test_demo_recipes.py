"""The demo of sharp teachers runs as the Makefile calls it, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_kit import run

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_sharp_demo_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    small = ["train.steps=6", "train.evaluate_every=3", "tracking.enabled=false", "data.test=[]"]
    places = [f"output={tmp_path / 'runs'}", f"cache.root={tmp_path / 'cache'}"]
    sets = [word for change in [*small, *places] for word in ("--set", change)]
    file = REPOSITORY / "recipes/realworld_demo.yaml"
    done = run("run", file, "--inline", "--json", tmp_path / "out.json", *sets)
    assert done.code == 0, done.err
    assert "below the best teacher" not in done.err  # a sharp target is not judged by PSNR against HR
    row = json.loads((tmp_path / "out.json").read_text())["rows"][-1]
    assert row["model"] == "mtkd-compact-s0" or row["method"] == "mtkd"
    shipped = {p.name for p in (tmp_path / "runs").rglob("compact_x2*")}
    assert {"compact_x2.onnx", "compact_x2.pth"} <= shipped
