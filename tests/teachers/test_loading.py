"""Checkpoints in, teachers out: what is read, what is refused, and with which words."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import students
from pipeline.cost import parameters
from pipeline.deploy.export import save_student
from pipeline.errors import InputError
from teachers import zoo
from teachers.descriptor import Convention
from teachers.loading import load_teacher
from teachers.networks.imdn import IMDN
from teachers.networks.pan import PAN


@pytest.fixture(scope="module")
def imdn() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return IMDN(2, channels=16, kept=4, blocks=2).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params": state},
        lambda state: {"params": {}, "params_ema": state, "iteration": 5},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"model": {"net": {f"module.{key}": value for key, value in state.items()}}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
    ],
    ids=["plain", "params", "params_ema first", "state_dict and module", "nested twice", "module"],
)
def test_tensors_are_found_under_wrappings(tmp_path: Path, imdn: dict[str, torch.Tensor], wrap: Any) -> None:
    torch.save(wrap(imdn), tmp_path / "net.pth")
    teacher = load_teacher(tmp_path / "net.pth", scale=2)
    assert (teacher.info.architecture, teacher.info.name) == ("IMDN", "net")
    for key, value in teacher.network.state_dict().items():
        assert torch.equal(value, imdn[key])


def test_safetensors_are_told_by_content_not_by_name(tmp_path: Path, imdn: dict[str, torch.Tensor]) -> None:
    save_file(imdn, tmp_path / "net.safetensors")
    (tmp_path / "renamed.pth").write_bytes((tmp_path / "net.safetensors").read_bytes())
    torch.save(imdn, tmp_path / "net.pth")
    x = torch.rand(1, 3, 12, 10)
    outputs = [load_teacher(tmp_path / name)(x) for name in ("net.safetensors", "renamed.pth", "net.pth")]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_identity_is_the_sha256_of_the_file(tmp_path: Path, imdn: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "net.pth"
    torch.save(imdn, path)
    info = load_teacher(path, name="mine").info
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (info.name, info.source) == ("mine", str(path))


class Malicious:
    """Unpickled carelessly, it makes the directory `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "named safetensors"])
def test_pickles_that_run_code_are_refused_and_not_run(tmp_path: Path, form: str) -> None:
    trap, path = (
        tmp_path / "trap",
        tmp_path / ("net.safetensors" if form == "named safetensors" else "net.pth"),
    )
    payload = {"head.0.weight": Malicious(str(trap))}
    if form in ("bare pickle", "named safetensors"):
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError) as caught:
        load_teacher(path, scale=2)
    assert not trap.exists() and str(path) in str(caught.value)
    if form in ("zip", "legacy"):
        assert "expected tensors only" in str(caught.value) and "mkdir" in str(caught.value)
    with path.open("rb") as file:  # the trap does go off when opened carelessly
        if form == "bare pickle":
            pickle.load(file)
            assert trap.exists()


def test_torchscript_archives_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 12, 3)), tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"tensors only, found a TorchScript archive.*state_dict"):
        load_teacher(tmp_path / "net.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.97])
def test_truncated_files_are_named(
    tmp_path: Path, imdn: dict[str, torch.Tensor], form: str, part: float
) -> None:
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pth")
    if form == "safetensors":
        save_file(imdn, path)
    else:
        torch.save(imdn, path, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(InputError, match="a whole checkpoint.*Download or copy it again") as caught:
        load_teacher(path, scale=2)
    assert str(path) in str(caught.value)


def test_flipped_bytes_are_noticed(tmp_path: Path, imdn: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "net.pth"
    torch.save(imdn, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"whole checkpoint, found a wrong checksum of net/data/"):
        load_teacher(path)


def test_dangerous_advice_of_the_library_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(pickle.dumps({"a": Malicious("x")}, protocol=4))
    with pytest.raises(InputError) as caught:
        load_teacher(tmp_path / "net.pth")
    assert "weights_only" not in str(caught.value)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_text("<html>404 not found</html>")
    with pytest.raises(InputError, match="whole checkpoint"):
        load_teacher(tmp_path / "net.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match="a state dict, found Tensor"):
        load_teacher(tmp_path / "tensor.pth")
    torch.save({"a": torch.ones(3), "b": "text"}, tmp_path / "mixed.pth")
    with pytest.raises(InputError, match=r"1 tensors \(a, ...\); read as it is"):
        load_teacher(tmp_path / "mixed.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(InputError, match="an empty one"):
        load_teacher(tmp_path / "empty.pth")


@pytest.mark.parametrize("source", ["nowhere.pth", "no-such-name-x2", "."])
def test_what_is_neither_file_nor_name_lists_the_names(source: str) -> None:
    with pytest.raises(
        InputError, match=r"a checkpoint file or a name of the zoo, found neither.*swinir-m-x4"
    ):
        load_teacher(source)


def test_wrong_scale_says_what_was_expected_and_found(tmp_path: Path, imdn: dict[str, torch.Tensor]) -> None:
    torch.save(imdn, tmp_path / "net.pth")
    with pytest.raises(InputError) as caught:
        load_teacher(tmp_path / "net.pth", scale=4)
    assert (caught.value.expected, caught.value.found) == ("scale 4", "scale 2 (IMDN)")


def test_wrong_scale_of_a_spandrel_network(shared: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_teacher(shared / "weights/dctlsa_x4.pt", scale=2)
    assert (caught.value.expected, caught.value.found) == ("scale 2", "scale 4 (DCTLSA)")


def test_weights_that_fit_several_scales_need_one(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the scale to use, found CARN-M weights that fit scales 2, 3, 4"):
        load_teacher(shared / "weights/carn_m_multi.pth")
    save_file(PAN(2, 8, 4, 1).state_dict(), tmp_path / "pan.safetensors")
    with pytest.raises(InputError, match=r"found PAN weights that fit scales 2, 3\. Add the scale"):
        load_teacher(tmp_path / "pan.safetensors")


def test_unknown_network_lists_what_is_known(tmp_path: Path) -> None:
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"found 1 tensors \(some\.weight.*CARN-M.*SwinIR"):
        load_teacher(tmp_path / "net.pth", scale=2)


def test_architecture_restricts_the_search(tmp_path: Path, imdn: dict[str, torch.Tensor]) -> None:
    torch.save(imdn, tmp_path / "net.pth")
    assert load_teacher(tmp_path / "net.pth", architecture="IMDN").info.architecture == "IMDN"
    with pytest.raises(InputError, match="a checkpoint of PAN, found"):
        load_teacher(tmp_path / "net.pth", architecture="PAN")


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_loading_is_strict(tmp_path: Path, imdn: dict[str, torch.Tensor], change: str) -> None:
    state = dict(imdn)
    if change == "missing":
        del state["IMDB2.c3.bias"]
    elif change == "extra":
        state["IMDB2.c9.bias"] = torch.zeros(3)
    else:
        state["IMDB2.c3.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"the tensors of IMDN, found .*IMDB2\.c[39]\.bias"):
        load_teacher(tmp_path / "net.pth")


def test_students_are_teachers_too(tmp_path: Path) -> None:
    options = {"d": 8, "s": 4, "m": 1}
    student = students.build("fsrcnn", 3, **options).eval()
    save_student(tmp_path / "s.safetensors", student, name="fsrcnn", scale=3, options=options)
    teacher = load_teacher(tmp_path / "s.safetensors", scale=3)
    assert (teacher.info.architecture, teacher.info.scale, teacher.info.name) == ("fsrcnn", 3, "s")
    x = torch.rand(2, 3, 9, 14)
    torch.testing.assert_close(teacher(x), student(x).detach())
    with pytest.raises(InputError, match="scale 2, found scale 3"):
        load_teacher(tmp_path / "s.safetensors", scale=2)


def test_a_students_parameters_are_those_that_ship(tmp_path: Path) -> None:
    student = students.build("span", 2, features=8)
    save_student(tmp_path / "s.safetensors", student, name="span", scale=2, options={"features": 8})
    shipped = parameters(students.deployed(student))
    assert load_teacher(str(tmp_path / "s.safetensors")).info.parameters == shipped < parameters(student)


def test_student_with_damaged_description_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "s.safetensors", metadata={"faculty": '{"scale": 2}'})
    with pytest.raises(InputError, match="JSON with architecture, scale and options"):
        load_teacher(tmp_path / "s.safetensors")


def test_range_and_order_can_be_overruled(tmp_path: Path, imdn: dict[str, torch.Tensor]) -> None:
    torch.save(imdn, tmp_path / "net.pth")
    x = torch.rand(1, 3, 10, 10)
    plain = load_teacher(tmp_path / "net.pth")
    other = load_teacher(tmp_path / "net.pth", value_range=255.0, bgr=True)
    assert other.convention == Convention(255.0, True)
    with torch.inference_mode():
        expected = plain.network((x * 255.0).flip(1)).flip(1) / 255.0
    torch.testing.assert_close(other(x), expected, atol=1e-5, rtol=1e-4)


def test_perceptual_teachers_of_the_zoo_are_known_by_their_bytes(
    tmp_path: Path, imdn: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    path = tmp_path / "net.pth"
    torch.save(imdn, path)
    assert not load_teacher(path).info.perceptual
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(zoo.ZOO, "realesrgan-x2", replace(zoo.ZOO["realesrgan-x2"], sha256=sha256))
    assert load_teacher(path).info.perceptual


def test_zip_archives_without_tensors_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(InputError, match="whole checkpoint"):
        load_teacher(tmp_path / "net.pth")
