"""Exported students: what comes back is the student, whole, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import students
from pipeline.deploy import export
from pipeline.deploy.export import StudentInfo, export_onnx, export_pth, load_student, save_student
from pipeline.deploy.model_card import card, model_card
from pipeline.errors import FacultyError, InputError
from teachers.loading import load_teacher

COMPACT = {"features": 8, "convs": 2}
SWIN = {"dim": 12, "depths": [2], "heads": 2}


def student(name: str = "compact", scale: int = 2, **options: Any) -> nn.Module:
    """A small network whose picture is neither its start nor wild."""
    torch.manual_seed(0)
    model = students.build(name, scale, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.02 if parameter.ndim > 1 else 0.002)
    return model.eval()


def picture(height: int = 18, width: int = 23, batch: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).random((batch, 3, height, width), np.float32))


def onnx_runs(path: Path, lr: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_saved_student_comes_back_bit_for_bit(tmp_path: Path, layout: torch.memory_format) -> None:
    model = student(**COMPACT).to(memory_format=layout)
    path = tmp_path / "new folder" / "student.safetensors"
    facts = {"method": "mtkd", "metrics": {"Set5": {"psnr_y": 37.5}}, "seed": 3}
    saved = save_student(path, model, name="compact", scale=2, options=COMPACT, metadata=facts)
    loaded, info = load_student(path)
    assert info == saved == StudentInfo("compact", 2, COMPACT, facts)
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))


def test_the_file_tells_other_programs_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_student(
        path, student(**COMPACT), name="compact", scale=2, options=COMPACT, metadata={"recipe": "abc"}
    )
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["faculty"])
    assert told == {"recipe": "abc", "architecture": "compact", "scale": 2, "options": COMPACT}


def test_a_student_teaches(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    model = student(**COMPACT)
    save_student(path, model, name="compact", scale=2, options=COMPACT)
    with torch.no_grad():
        assert torch.allclose(load_teacher(path)(picture()), model(picture()), atol=1e-6)


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_student(path, student(**COMPACT).half(), name="compact", scale=2, options=COMPACT)
    loaded, _ = load_student(path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_files_that_are_no_student_are_refused(tmp_path: Path) -> None:
    foreign, damaged, other = (
        tmp_path / name for name in ("f.safetensors", "d.safetensors", "o.safetensors")
    )
    save_file({"x": torch.zeros(2)}, foreign)
    save_student(damaged, student(**COMPACT), name="compact", scale=2, options=COMPACT)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    save_student(other, student(**COMPACT), name="compact", scale=2, options={"features": 9})
    for path, told in (
        (foreign, "without Faculty's metadata"),
        (damaged, "one that cannot be read .*not fully covered"),
        (other, "tensors and metadata of one student"),
        (tmp_path / "none.safetensors", "No such file|not found"),
    ):
        with pytest.raises(InputError, match=told):
            load_student(path)


@pytest.mark.parametrize(
    ("name", "scale", "options"),
    [
        ("compact", 2, COMPACT),
        ("fsrcnn", 3, {"d": 8, "s": 4, "m": 1, "colours": 1}),
        pytest.param("fsrcnn", 2, {"d": 8, "s": 4, "m": 1, "skip": "bicubic"}, marks=pytest.mark.slow),
        pytest.param("edsr", 4, {"blocks": 2, "features": 8}, marks=pytest.mark.slow),
        pytest.param("rcan", 3, {"groups": 2, "blocks": 1, "features": 16}, marks=pytest.mark.slow),
        pytest.param("span", 2, {"features": 8}, marks=pytest.mark.slow),
        pytest.param("swinir_light", 2, SWIN, marks=pytest.mark.slow),
        pytest.param("spandrel:PLKSR", 2, {"dim": 16, "n_blocks": 1}, marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_students_picture_at_any_size(
    name: str, scale: int, options: dict[str, Any], tmp_path: Path
) -> None:
    model, path = student(name, scale, **options), tmp_path / "s.onnx"
    assert export_onnx(model, path, scale) <= 1e-5
    for shape in ((18, 23, 1), (48, 16, 3)):
        lr = picture(*shape)
        with torch.no_grad():
            assert torch.allclose(onnx_runs(path, lr), model(lr), atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["s.onnx"]


def test_onnx_of_a_student_in_training_is_its_evaluation(tmp_path: Path) -> None:
    model = student(**COMPACT)
    model.train()
    export_onnx(model, tmp_path / "s.onnx", 2)
    assert model.training  # left as it was


def test_onnx_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.onnx"
    path.write_bytes(b"an earlier one")
    monkeypatch.setattr(export, "PARITY", -1.0)
    with pytest.raises(FacultyError, match="gives other values"):
        export_onnx(student(**COMPACT), path, 2)
    assert path.read_bytes() == b"an earlier one"
    assert list(tmp_path.iterdir()) == [path]


class Asks(nn.Module):
    """A network that looks at its values to decide, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


def test_a_network_that_onnx_cannot_express_is_named(tmp_path: Path) -> None:
    with pytest.raises(FacultyError, match=r"s\.onnx: this network cannot be written as ONNX"):
        export_onnx(Asks(), tmp_path / "s.onnx", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "id"),
    [
        ("compact", COMPACT, "Compact"),
        ("edsr", {"blocks": 2, "features": 8, "res_scale": 0.1}, "RCAN"),
        ("rcan", {"groups": 2, "blocks": 1, "features": 16}, "RCAN"),
        ("span", {"features": 8}, "SPAN"),
        ("swinir_light", SWIN, "SwinIR"),
        ("spandrel:SAFMN", {"dim": 12, "n_blocks": 1}, "SAFMN"),
    ],
)
def test_pth_opens_elsewhere_with_the_students_picture(
    name: str, options: dict[str, Any], id: str, tmp_path: Path
) -> None:
    model, path = student(name, 3, **options), tmp_path / "s.pth"
    assert export_pth(model, path) == id
    reopened = load_teacher(path)
    assert (reopened.info.architecture, reopened.info.scale) == (id, 3)
    lr = picture(16, 32)  # a size that no architecture pads
    with torch.no_grad():
        assert torch.allclose(reopened(lr).clamp(0, 1), model(lr).clamp(0, 1), atol=1e-5)


def test_fsrcnn_has_no_pth(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"compact, edsr, rcan, span, swinir_light.*ONNX"):
        export_pth(student("fsrcnn"), tmp_path / "s.pth")
    assert list(tmp_path.iterdir()) == []


def test_pth_that_spandrel_reads_otherwise_is_not_written(tmp_path: Path) -> None:
    """spandrel cannot see SPAN's value range in the weights and assumes 255."""
    torch.manual_seed(0)
    model = students.build("spandrel:SPAN", 2, feature_channels=8, img_range=1.0)
    with pytest.raises(FacultyError, match="gives other values"):
        export_pth(model, tmp_path / "s.pth")
    assert list(tmp_path.iterdir()) == []


def test_the_card_tells_what_how_good_and_how_to_open(tmp_path: Path) -> None:
    facts = {
        "method": "mtkd",
        "teachers": {"imdn": "ab" * 32, "rlfn": "cd" * 32},
        "metrics": {"Set5": {"images": 5, "psnr_y": 37.1234, "ssim_y": 0.9567}},
        "protocol": "the luma",
        "recipe": "0123456789abcdef",
    }
    files = [("compact_x2.safetensors", "1 byte", ""), ("compact_x2.pth", "1 byte", "")]
    model_card(tmp_path / "README.md", StudentInfo("compact", 2, COMPACT, facts), files)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# compact x2\n")
    for told in ("`mtkd`", "features = 8", f"| rlfn | {'cd' * 32} |", "| Set5 | 5 | 37.1234 | 0.9567 |"):
        assert told in text
    for told in (
        "Measured on the luma.",
        "faculty upscale",
        "chaiNNer",
        "load_student",
        "| recipe | 0123456789abcdef |",
    ):
        assert told in text
    # 3x8x9+8, twice 8x8x9+8, 8x12x9+12, and a slope for each of 3x8 features
    assert f"| parameters | {224 + 2 * 584 + 876 + 24:,} |" in text


def test_the_card_of_a_bare_student_promises_nothing_more() -> None:
    assert "chaiNNer" not in card(StudentInfo("compact", 2, COMPACT)), "there is no .pth beside it"
    text = card(StudentInfo("fsrcnn", 2, {}))
    assert not any(word in text for word in ("chaiNNer", "Teachers", "Results", "method"))


def test_the_cards_python_lines_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(**COMPACT)
    save_student(tmp_path / "FILE.safetensors", model, name="compact", scale=2, options=COMPACT)
    text = card(StudentInfo("compact", 2, COMPACT))
    block = text.rsplit("```python\n", 1)[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"lr": picture()}
    with torch.no_grad():
        exec("\n".join(line.strip() for line in block.splitlines()), names)
        assert torch.equal(names["sr"], model(picture()).clamp(0, 1))
