"""What a student leaves as, and what is said before a training whose student cannot leave as everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from road_kit import picture, recipe_file
from torch import nn

import students
from pipeline.cache.store import Store
from pipeline.cli import main
from pipeline.deploy.export import save_student
from pipeline.deploy.shipping import attempt, check_student, export_student
from pipeline.deploy.upscale import open_network
from pipeline.errors import InputError

SPAN = {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 12}
"""Of spandrel's SPAN, whose blocks are fused when it is used first: torch's exporter cannot follow that."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abc"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 104, seed)
    return tmp_path


def test_a_student_without_onnx_is_said_before_its_training_and_ships_all_the_same(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    file = recipe_file(
        place,
        method={"name": "scratch"},
        teachers=[],
        student={"name": "spandrel:SPAN", "options": SPAN},
        compare={"methods": []},
        train={"steps": 1, "batch": 2, "evaluate_every": 1},
    )
    assert main(["run", str(file), "--inline"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.index(
        "student spandrel:SPAN leaves without ONNX: this network cannot be written as ONNX"
    ) < said.index("1/1 steps")
    (folder,) = (place / "runs" / "r" / "students").iterdir()
    kinds = {path.suffix for path in folder.iterdir() if path.name not in ("stamp.json", "made.json")}
    assert kinds == {".safetensors", ".pth", ".md"}
    network, scale = open_network(next(folder.glob("*.pth")))
    assert scale == 2 and network(torch.rand(1, 3, 9, 10)).shape == (1, 3, 18, 20)
    report = (place / "runs" / "r" / "report" / "report.md").read_text()
    assert "leaves without ONNX" in report
    # Again: nothing is computed, and the warning stands.
    assert main(["run", str(file), "--inline"]) == 0
    assert "leaves without ONNX" in " ".join(capsys.readouterr().err.split())
    assert (place / "runs" / "r" / "report" / "report.md").read_text() == report


def test_export_writes_what_it_can_and_says_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = SPAN
    model = students.build("spandrel:SPAN", 2, **options)
    save_student(tmp_path / "s.safetensors", model, name="spandrel:SPAN", scale=2, options=options)
    assert main(["export", str(tmp_path / "s.safetensors"), str(tmp_path / "out")]) == 1
    done = capsys.readouterr()
    assert "pth:" in done.out and "card:" in done.out and "leaves without ONNX" in done.err
    assert "Error" not in done.err and "\x1b" not in done.err
    made = export_student(tmp_path / "s.safetensors", tmp_path / "again")
    assert set(made.files) == {"safetensors", "pth", "card"} and set(made.missing) == {"onnx"}


def test_an_export_replaces_nobodys_page_and_not_the_student_itself(tmp_path: Path) -> None:
    student, page = tmp_path / "compact_x2.safetensors", tmp_path / "README.md"
    options = {"features": 4, "convs": 1}
    save_student(student, students.build("compact", 2, **options), name="compact", scale=2, options=options)
    before = student.read_bytes()
    with pytest.raises(InputError, match="compact_x2.safetensors: .*the student itself"):
        export_student(student, tmp_path, half=True)
    page.write_text("# My project")
    with pytest.raises(InputError, match="README.md: .*another page"):
        export_student(student, tmp_path)
    assert student.read_bytes() == before and page.read_text() == "# My project"
    page.unlink()
    for _ in range(2):  # an earlier card may be replaced
        export_student(student, tmp_path)
    assert "enlarges pictures 2 times. Made with Faculty." in page.read_text()


def test_the_card_of_a_restorer_speaks_of_restoring(tmp_path: Path) -> None:
    options = {"features": 4, "convs": 1}
    network = students.build("compact", 1, **options)
    save_student(tmp_path / "s.safetensors", network, name="compact", scale=1, options=options)
    page = export_student(tmp_path / "s.safetensors", tmp_path / "out").files["card"].read_text()
    assert "A network that restores pictures." in page and "the same, of the same size, not clamped" in page


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spandrel:SPAN", SPAN),
        ("spandrel:Compact", {"num_feat": 8, "num_conv": 2}),
    ],
)
def test_students_that_work_are_asked_once(
    tmp_path: Path, name: str, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Store.open(tmp_path)
    before = torch.get_rng_state()
    said = check_student(name, 2, options, known)
    assert torch.equal(torch.get_rng_state(), before)  # a run's weights do not depend on the look
    monkeypatch.setattr(students, "build", None)
    assert check_student(name, 2, options, known) == said
    assert ("ONNX" in said) == (name == "spandrel:SPAN")  # its re-parameterised blocks


def test_a_network_that_takes_one_picture_at_a_time_is_refused_before_anything_starts(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    """SeemoRe, used on a batch, sends every picture to the experts of the first."""
    student = {
        "name": "spandrel:SeemoRe",
        "options": {"num_experts": 2, "embedding_dim": 12, "num_layers": 1},
    }
    file = recipe_file(place, method={"name": "scratch"}, teachers=[], student=student)
    assert main(["run", str(file)]) == 2
    said = capsys.readouterr().err
    assert "student spandrel:SeemoRe: expected a network that takes several pictures at once" in said
    assert "Error" not in said and not (place / "cache").exists()


def test_a_network_that_a_batch_does_not_train_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.weight).view(1, 3, *x.shape[2:])

    monkeypatch.setattr(students, "build", lambda *_, **__: Single())
    with pytest.raises(
        InputError, match="a batch of two pictures forwards and backwards, found shape"
    ) as caught:
        check_student("spandrel:Single", 2, {}, Store.open(tmp_path))
    assert "Error" not in str(caught.value) and not (tmp_path / "probes").exists()


def test_attempt_passes_bugs_on() -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 / 0)
