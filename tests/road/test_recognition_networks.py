"""Networks in recognition runs: timm's, from files, exported, enlarged, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recognition_kit import ALL, BUDGET, content, figures, picture_folder, run, scored
from road_kit import Untouchable

from pipeline.deploy.onnx_file import onnx_session
from pipeline.errors import InputError
from pipeline.road.results import finish
from pipeline.tasks.recognition.opening import load_recogniser
from pipeline.tasks.recognition.recipe import Network


def test_segmentation_with_a_teacher_of_timm(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    data = {"layout": "masks", "root": picture_folder(tmp_path, 2, 8, 32, masks=True), "size": 32}
    teacher = {"network": {"name": "resnet10t", "embedding": 8}, "train": BUDGET}
    road = run(tmp_path, task="segmentation", data=data, teacher=teacher)
    outcome = road.everything(ALL, [0])
    finish(road, outcome, [])
    found = figures(outcome, "rkd-resnet8-x2-s0")
    assert found.keys() >= {"iou", "dice", "auprc"}
    for key in found.keys() & {"iou_low", "dice_low", "auprc_low"}:
        name = key.removesuffix("_low")
        assert found[key] <= found[f"{name}_high"] and found[key] - 0.02 <= found[name]
    assert list((tmp_path / "runs").rglob("picture_1.png"))
    (file,) = (tmp_path / "runs").rglob("rkd*/resnet8_x2.onnx")
    logits = onnx_session(file.read_bytes())(torch.rand(1, 3, 16, 16))[0]
    assert logits.shape[:2] == (1, 2)


def test_an_exported_student_is_the_trained_one_in_both_files(tmp_path: Path) -> None:
    road = run(tmp_path)
    outcome = road.everything(["kd"], [0])
    (made,) = finish(road, outcome, []).students.values()
    file = made["safetensors"]
    net, facts = load_recogniser(file)
    assert (facts["gap"], facts["size"], facts["classes"]) == (2, [4, 4], 10)
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    logits, embedding = onnx_session(Path(file).with_suffix(".onnx").read_bytes())(x)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embedding, expected["embedding"], atol=1e-4, rtol=1e-4)
    page = Path(file).with_name("README.md").read_text()
    assert "Classes, in the order of the logits: 0, 1, 2" in page and "## Results on digits" in page


def test_files_that_are_no_recognition_networks_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    damaged, foreign = tmp_path / "damaged.safetensors", tmp_path / "foreign.safetensors"
    damaged.write_bytes(b"no")
    save_file({"x": torch.zeros(1)}, foreign)
    for path, message in [(damaged, "one that cannot be read"), (foreign, "without Faculty's metadata")]:
        with pytest.raises(InputError, match=message):
            load_recogniser(path)


def test_an_enlarged_student_pays_for_hr(tmp_path: Path) -> None:
    native = run(tmp_path).everything(["scratch"], [0])
    enlarged = run(tmp_path, input="enlarged").everything(["scratch"], [0])
    label = "scratch-resnet8-x2-s0"
    small, large = scored(native)[label], scored(enlarged)[label]
    assert small.multiply_adds is not None and large.multiply_adds is not None
    assert large.multiply_adds > small.multiply_adds
    assert (small.curves["dropped"], large.curves["dropped"]) == (1, 0)


def test_a_teacher_from_a_file_and_one_of_another_class_count(tmp_path: Path) -> None:
    trained = run(tmp_path).everything(["scratch"], [0])
    file = tmp_path / "cache" / trained.prepared.teachers[-1].network.weights
    spec = content(tmp_path)["teacher"]["network"]
    given = {"network": spec, "checkpoint": str(file), "train": None}
    outcome = run(tmp_path / "b", teacher=given).everything(["kd"], [0])
    assert figures(outcome, "teacher") == figures(trained, "teacher")
    data = {"layout": "folders", "root": picture_folder(tmp_path, 3, 6), "size": 8}
    with pytest.raises(InputError, match=r"expected 3 classes, found 10"):
        run(tmp_path / "c", teacher=given, data=data).everything(["kd"], [0])
    wide = {**given, "network": {**spec, "options": {"width": 4}}}
    with pytest.raises(InputError, match="weights of this network"):
        run(tmp_path / "d", teacher=wide).everything(["kd"], [0])


def test_networks_that_do_not_exist_are_refused_before_anything_starts(tmp_path: Path) -> None:
    from pipeline.tasks.recognition.networks import build

    for spec in (
        Network(name="resnet9999"),
        Network(options={"depht": 3}),
        Network(options={"norm": "layer"}),
    ):
        with pytest.raises(InputError):
            build(spec, (8, 8), 2)
    with pytest.raises(InputError):
        run(tmp_path, Untouchable(), student={"name": "no_such_net"}).everything(["scratch"], [0])


def test_strides_of_a_timm_stem_are_dropped_for_small_pictures() -> None:
    from pipeline.tasks.recognition.networks import build

    small, large = (build(Network(name="resnet10t"), (s, s), 2) for s in (16, 64))
    assert (small.dropped, large.dropped) == (2, 0)
    assert {k: v.shape for k, v in small.state_dict().items()} == {
        k: v.shape for k, v in large.state_dict().items()
    }
    assert min(small(torch.zeros(1, 3, 16, 16))["map"].shape[-2:]) == 2


def test_spandrel_and_timm_live_in_one_process() -> None:
    import sys

    from teachers.spandrel_import import import_spandrel
    from teachers.timm_import import import_timm

    assert import_timm().list_models("resnet18") and import_spandrel().ModelLoader
    assert not any(type(m).__name__ == "_Lent" for m in sys.modules.values())
