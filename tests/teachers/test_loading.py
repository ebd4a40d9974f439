"""Checkpoints in, teachers out: what is read, what is refused, and with which words."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import students
from pipeline.deploy.export import save_student
from pipeline.errors import InputError
from teachers import zoo
from teachers.descriptor import Convention, Teacher, TeacherInfo, pad
from teachers.loading import load_teacher
from teachers.networks.imdn import IMDN
from teachers.networks.pan import PAN
from teachers.spandrel_import import import_spandrel


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


def test_student_with_damaged_description_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "s.safetensors", metadata={"faculty": '{"scale": 2}'})
    with pytest.raises(InputError, match="JSON with architecture, scale and options"):
        load_teacher(tmp_path / "s.safetensors")


def save_rcan(path: Path, range_of_mean: float) -> nn.Module:
    import_spandrel()
    from spandrel.architectures.RCAN import RCAN

    torch.manual_seed(0)
    network = RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16).eval()
    state = network.state_dict()
    for name in ("sub_mean.bias", "add_mean.bias"):
        state[name] = state[name] * (range_of_mean / 255.0)
    torch.save(state, path)
    return network


def test_input_is_left_alone_even_by_networks_that_write_into_it(tmp_path: Path) -> None:
    network = save_rcan(tmp_path / "rcan.pt", 255.0)
    x = torch.rand(1, 3, 12, 12)
    kept = x.clone()
    network(x.clone())
    teacher = load_teacher(tmp_path / "rcan.pt")
    first, second = teacher(x), teacher(x)
    assert torch.equal(x, kept) and torch.equal(first, second)
    with torch.no_grad():
        torch.testing.assert_close(first, network(kept.clone()).clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_rcan_of_unit_range_is_told_by_its_mean_shift(tmp_path: Path) -> None:
    save_rcan(tmp_path / "rcan.pt", 1.0)
    assert load_teacher(tmp_path / "rcan.pt").network.model.rgb_range == 1


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


class Nearest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 1
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def test_luminance_networks_keep_the_colours() -> None:
    teacher = Teacher(TeacherInfo("y", "Nearest", 2, 0, "", ""), Nearest(), Convention(luma=True))
    flat = torch.tensor([0.9, 0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    torch.testing.assert_close(teacher(flat), flat.repeat(1, 1, 2, 2), atol=1e-5, rtol=0)
    grey = torch.rand(1, 1, 6, 6).expand(1, 3, 6, 6)
    torch.testing.assert_close(
        teacher(grey), grey.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_inputs_of_another_kind_are_refused(bad: torch.Tensor) -> None:
    teacher = Teacher(TeacherInfo("t", "none", 2, 0, "", ""), nn.Identity())
    with pytest.raises(InputError, match=r"floats in \[0, 1\]"):
        teacher(bad)


def test_output_of_another_size_is_refused() -> None:
    teacher = Teacher(TeacherInfo("t", "none", 2, 0, "", ""), nn.Identity())
    with pytest.raises(
        InputError, match=r"teacher t: expected output \(1, 3, 16, 16\) for x2, found \(1, 3, 8, 8\)"
    ):
        teacher(torch.zeros(1, 3, 8, 8))


def test_padding_mirrors_as_often_as_needed() -> None:
    x = torch.arange(3.0).view(1, 1, 1, 3)
    assert pad(x, 8, 1)[0, 0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert pad(x, 8, 1).shape == (1, 1, 8, 8)
    assert pad(torch.zeros(1, 1, 17, 16), 1, 16).shape == (1, 1, 32, 16)
    assert pad(x, 1, 1) is x


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (24, 17)])
def test_window_networks_take_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    import_spandrel()
    from spandrel.architectures.DRCT import DRCT
    from spandrel.architectures.SwinIR import SwinIR

    small = {"depths": [2, 2], "num_heads": [2, 2], "window_size": 8, "img_size": 32}
    for i, network in enumerate(
        (
            SwinIR(upscale=2, embed_dim=12, mlp_ratio=2, upsampler="pixelshuffledirect", **small),
            DRCT(upscale=2, embed_dim=12, mlp_ratio=2, upsampler="pixelshuffle", gc=8, **small),
        )
    ):
        torch.save({"params": network.state_dict()}, tmp_path / f"{i}.pth")
        teacher = load_teacher(tmp_path / f"{i}.pth", scale=2)
        assert not teacher.info.convolutional
        out = teacher(torch.rand(1, 3, *size))
        assert out.shape == (1, 3, 2 * size[0], 2 * size[1]) and out.isfinite().all()


LOAD = """
import sys, torch
{before}
from teachers.loading import load_teacher
teacher = load_teacher({path!r}, scale=2)
assert teacher.info.architecture == "Compact", teacher.info
lent = [name for name in sys.modules if name.startswith("torchvision")]
{after}
"""
BLOCKED = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("torchvision", ["absent", "broken", "working"])
def test_spandrel_opens_with_any_torchvision_in_a_new_process(
    tmp_path: Path, repository: Path, torchvision: str
) -> None:
    save_compact(tmp_path / "compact.pth")
    package = tmp_path / "site" / "torchvision"
    if torchvision != "absent":
        (package / "transforms").mkdir(parents=True)
        (package / "extension.py").write_text("loaded = True\n")
        body = "from torchvision import extension\n"
        if torchvision == "broken":
            body += "raise RuntimeError('operator torchvision::nms does not exist')\n"
        (package / "__init__.py").write_text(body)
        (package / "transforms" / "__init__.py").touch()
        (package / "transforms" / "functional.py").write_text(
            "InterpolationMode = rotate = normalize = None\n"
        )
    after = (
        "assert 'torchvision' in lent"
        if torchvision == "working"
        else "assert 'torchvision' not in lent, lent"
    )
    before = BLOCKED if torchvision == "absent" else ""
    code = LOAD.format(path=str(tmp_path / "compact.pth"), before=before, after=after)
    path = os.pathsep.join([str(tmp_path / "site"), str(repository)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def save_compact(path: Path) -> None:
    import_spandrel()
    from spandrel.architectures.Compact import Compact

    torch.save({"params": Compact(num_feat=8, num_conv=1, upscale=2).state_dict()}, path)


def test_zip_archives_without_tensors_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(InputError, match="whole checkpoint"):
        load_teacher(tmp_path / "net.pth")
