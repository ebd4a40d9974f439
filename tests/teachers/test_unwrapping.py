"""What training code saves around a network is taken away, whatever it is; averaged weights come before live ones."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import InputError
from students import build
from teachers.loading import load_teacher
from teachers.spandrel_import import import_spandrel

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("compact", 2, features=8, convs=2).eval()


@pytest.fixture(scope="module")
def state(network: nn.Module) -> State:
    return network.spandrel_state_dict()


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def zeroed(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "torch.compile": lambda s: under("_orig_mod.", s),
    "data parallel twice": lambda s: under("module.module.", s),
    "compiled, then data parallel": lambda s: under("module._orig_mod.", s),
    "a prefix of somebody's own": lambda s: under("my_sr_network.", s),
    "averaged model": lambda s: {"n_averaged": torch.tensor(5), **under("module.", s)},
    "averaged model under params_ema": lambda s: {
        "params_ema": {"n_averaged": torch.tensor(5), **under("module.", s)}
    },
    "lightning": lambda s: {"epoch": 1, "state_dict": under("model.", s), "hyper_parameters": {"lr": 1e-4}},
    "lightning with a loss": lambda s: {
        "state_dict": {**under("model.", s), "loss.vgg.mean": torch.zeros(3)}
    },
    "profiled": lambda s: {**s, "total_ops": torch.zeros(1), "body.0.total_params": torch.zeros(1)},
    "live and averaged": lambda s: {"state_dict": zeroed(s), "state_dict_ema": s, "epoch": 1},
    "live and averaged, averaged last": lambda s: {"params": zeroed(s), "ema_weights": s},
    "flat live and averaged": lambda s: {**under("net_g.", zeroed(s)), **under("net_g_ema.", s)},
    "averaged, empty": lambda s: {"params": s, "params_ema": {}},
    "averaged, none": lambda s: {"params": s, "params_ema": None},
    "with its optimiser": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "with its discriminator": lambda s: {"G": s, "D": {"conv.weight": torch.zeros(3, 3)}},
    "the same twice": lambda s: {"first": s, "second": dict(s)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_holds_the_same_network(
    tmp_path: Path, network: nn.Module, state: State, wrapping: str
) -> None:
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "net.pth")
    x = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    teacher = load_teacher(tmp_path / "net.pth")
    assert teacher.info.parameters == sum(p.numel() for p in network.parameters())
    with torch.inference_mode():
        assert torch.equal(teacher(x), network(x).clamp(0, 1))


def test_prefixes_in_safetensors_are_taken_off_too(tmp_path: Path, state: State) -> None:
    save_file(
        {k: v.contiguous() for k, v in under("params_ema.", state).items()}, tmp_path / "net.safetensors"
    )
    assert load_teacher(tmp_path / "net.safetensors").info.architecture == "Compact"


def test_names_that_begin_like_a_wrapper_are_a_networks_own(tmp_path: Path) -> None:
    """ESRGAN's published spelling is `model.0.weight`; behind `model.` it would be no network any more."""
    torch.manual_seed(0)
    network = build("spandrel:ESRGAN", 2, num_filters=8, num_blocks=1).eval()
    state = network.spandrel_state_dict()
    assert "model.0.weight" in state
    for name, wrapped in {"bare": state, "lightning": {"state_dict": under("model.", state)}}.items():
        torch.save(wrapped, tmp_path / f"{name}.pth")
        assert load_teacher(tmp_path / f"{name}.pth").info.architecture == "ESRGAN"


def test_what_is_left_out_is_said(tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({**under("net.", state), "loss.vgg.mean": torch.zeros(3)}, tmp_path / "net.pth")
    with caplog.at_level(logging.WARNING):
        load_teacher(tmp_path / "net.pth")
    assert "left out what stands beside it: loss.*" in caplog.text


def test_two_networks_that_no_rule_tells_apart_are_refused(tmp_path: Path, state: State) -> None:
    torch.save({"first": state, "second": {k: v + 1 for k, v in state.items()}}, tmp_path / "net.pth")
    with pytest.raises(InputError, match="one network, found several: first, second"):
        load_teacher(tmp_path / "net.pth")


def test_a_refusal_says_what_was_tried(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"model.strange.weight": torch.ones(3), "model.strange.bias": torch.ones(3)}},
        tmp_path / "a.pth",
    )
    with pytest.raises(
        InputError,
        match=r"2 tensors \(model.strange.weight, model.strange.bias, ...\); read state_dict, state_dict > model\.",
    ):
        load_teacher(tmp_path / "a.pth")
    torch.save({"epoch": 1, "optimizers": [{"state": {0: torch.ones(3)}}]}, tmp_path / "b.state")
    with pytest.raises(
        InputError, match="no tensors under epoch, optimizers.*its own file|network's own file"
    ):
        load_teacher(tmp_path / "b.state")


def test_an_intact_onnx_file_that_makes_pictures_smaller_is_no_damaged_one(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, side, side])
        for name, side in (("x", 8), ("y", 4))
    ]
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(tmp_path / "net.onnx"))
    with pytest.raises(InputError, match=r"net\.onnx.*enlarges.*\(1, 3, 4, 4\) of") as caught:
        load_teacher(tmp_path / "net.onnx")
    assert "again" not in str(caught.value)
    (tmp_path / "half.onnx").write_bytes((tmp_path / "net.onnx").read_bytes()[:20])
    with pytest.raises(InputError, match=r"half\.onnx.*an ONNX network"):
        load_teacher(tmp_path / "half.onnx")


REFUSED = {
    "whole_module.pth": "a pickle that asks for .*, which can run code",
    "training_state.state": "no tensors under epoch, iter, optimizers, schedulers",
}


def test_the_wrappings_that_people_meet(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of make_checkpoints.py loads as the network it holds, or is refused with the reason."""
    import_spandrel()  # the script imports it, which needs a stub where torchvision is broken
    source = shared / "weights" / "imdn_x2.pth"
    monkeypatch.setattr(sys, "argv", ["make_checkpoints.py", str(source), str(tmp_path)])
    runpy.run_path(str(shared / "cases" / "make_checkpoints.py"), run_name="__main__")
    x = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    wanted, files = load_teacher(source)(x), sorted(tmp_path.iterdir())
    assert len(files) >= 29
    for file in files:
        if file.name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[file.name]):
                load_teacher(file)
            continue
        teacher = load_teacher(file)
        if file.name.startswith("esrgan"):
            assert teacher.info.architecture == "ESRGAN", file.name
            continue
        assert teacher.info.architecture == "IMDN", file.name
        tolerance = {"half": 5e-3, "bf16": 5e-2}.get(file.stem, 0.0)  # rounded weights
        assert float((teacher(x) - wanted).abs().max()) <= tolerance, file.name
    assert torch.equal(
        load_teacher(tmp_path / "esrgan_old.pth")(x), load_teacher(tmp_path / "esrgan_new.pth")(x)
    )
