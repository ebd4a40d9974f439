"""`faculty speed`: any mix of files, figures of real runs, and one line for what cannot be measured."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch
from road_kit import TEACHERS

from pipeline.cli import main
from pipeline.deploy import speed
from pipeline.deploy.shipping import export_student
from pipeline.deploy.speed import Size, measure, size_of
from pipeline.errors import InputError

COMPACT = TEACHERS / "compact_x2.safetensors"
SMALL = Size("24x32", 24, 32)
NCNN = all(map(importlib.util.find_spec, ("ncnn", "pnnx")))


def test_any_mix_of_files_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = export_student(COMPACT, tmp_path, formats=("fp16", *(["ncnn"] if NCNN else []))).files
    kinds = ["safetensors", "pth", "onnx", "fp16", *(["ncnn"] if NCNN else [])]
    files = [str(TEACHERS / "edsr_x2.safetensors"), *(str(made[kind]) for kind in kinds)]
    sheet = tmp_path / "speed.json"
    asked = ["--size", "24x32", "48x40", "--threads", "1", "--runs", "3", "--json", str(sheet)]
    assert main(["speed", *files, *asked]) == 0
    said = capsys.readouterr().out
    assert "1 thread," in said and "24x32: 32 x 24 pixels in" in said
    result = json.loads(sheet.read_text())
    rows = result["rows"]
    assert result["threads"] == 1 and len(rows) == 2 * len(files)
    for row in rows:
        assert not row["failure"] and row["scale"] == 2 and row["runs"] == 3 and row["milliseconds"] > 0
        assert row["pictures_per_second"] == pytest.approx(1000 / row["milliseconds"])
        (first,) = (r for r in rows if r["file"] == files[0] and r["size"] == row["size"])
        assert row["times_as_fast"] == pytest.approx(first["milliseconds"] / row["milliseconds"])
        assert Path(row["file"]).name in said
    runtimes = {Path(r["file"]).suffix: r["runtime"] for r in rows}
    assert runtimes[".onnx"] == "ONNX Runtime CPU" and runtimes[".pth"] == "PyTorch CPU"
    assert not NCNN or runtimes[".param"] == "ncnn CPU"


def test_what_does_not_fit_is_one_line_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A picture of 400 gigabytes of pixels; then files that are no networks."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    asked = ["--size", "200000x200000", "24x32", "--threads", "1", "--runs", "1"]
    assert main(["speed", str(COMPACT), str(broken), *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(x.split(maxsplit=1)[1] for x in lines if x.startswith("compact")) == "out of memory"
    assert len([x for x in lines if x.startswith("compact") and "PyTorch CPU" in x]) == 1
    assert len([x for x in lines if x.startswith("broken.onnx") and "expected an ONNX network" in x]) == 2
    assert main(["speed", str(broken), "--size", "24x32"]) == 1
    assert "nothing could be measured" in capsys.readouterr().err


def test_a_process_that_dies_is_one_line_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that ends the process that reads it, as a damaged ncnn file may end its runtime."""
    fatal = tmp_path / "sitecustom.param"
    fatal.write_text("7767517\n1 1\nInput in0 0 1 in0\n")
    pool = speed._pool

    def deadly() -> object:
        made = pool()
        submit = made.submit

        def one(function, file, *rest):
            return submit(os_exit, 9) if file == str(fatal) else submit(function, file, *rest)

        made.submit = one
        return made

    monkeypatch.setattr(speed, "_pool", deadly)
    found = list(measure([str(fatal), str(COMPACT)], [SMALL], threads=1, runs=1))
    assert "ended the measuring process" in found[0].failure and found[0].milliseconds is None
    assert found[1].milliseconds is not None


def os_exit(code: int) -> None:
    import os

    os._exit(code)


def test_the_median_is_that_of_the_network_and_warm_ups_do_not_count() -> None:
    waits = iter((0.3, 0.2, 0.01, 0.05, 0.02))

    def network(x: torch.Tensor) -> torch.Tensor:
        time.sleep(next(waits))
        return x

    times = speed._times(network, torch.zeros(1), "cpu", 3)
    assert len(times) == 3 and min(times) >= 0.01 and max(times) < 0.19


def test_threads_reach_every_runtime(tmp_path: Path) -> None:
    made = export_student(COMPACT, tmp_path).files
    before = torch.get_num_threads()
    try:
        network, scale, _ = speed._opened(str(made["onnx"]), 2, "cpu", None)
        assert scale == 2 and network.graph.session.get_session_options().intra_op_num_threads == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        speed._opened.cache_clear()


def test_the_network_that_is_timed_gives_the_pictures_of_the_file() -> None:
    from teachers.loading import load_teacher

    before = torch.get_num_threads()
    try:
        network, _, _ = speed._opened(str(COMPACT), 1, "cpu", None)
        x = torch.rand(1, 3, 9, 14)
        with torch.no_grad():
            assert torch.allclose(network(x), load_teacher(COMPACT)(x), atol=1e-5)
    finally:
        torch.set_num_threads(before)
        speed._opened.cache_clear()


def test_sizes_and_files_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert size_of("720p") == Size("720p", 720, 1280) and size_of("48x64") == Size("48x64", 48, 64)
    for text in ("0x4", "big", "48", "x4", "-1x2"):
        with pytest.raises(InputError, match="--size: expected one of"):
            size_of(text)
    assert main(["speed", str(tmp_path / "no.onnx")]) == 2
    assert "nothing there" in capsys.readouterr().err
    assert main(["speed", str(COMPACT), "--threads", "0"]) == 2
    assert "--threads: expected at least 1" in capsys.readouterr().err
