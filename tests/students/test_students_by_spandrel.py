"""Students as spandrel reads them, with the same pictures; its architectures as students; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from student_kit import shaken, small
from torch import Tensor

import students
from pipeline.errors import InputError
from teachers.spandrel_import import import_spandrel


def opened_by_spandrel(state: dict[str, Tensor]) -> Any:
    return import_spandrel().MAIN_REGISTRY.load({key: value.clone() for key, value in state.items()})


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("name", "id", "tolerance"),
    [
        ("compact", "Compact", 0.0),
        ("rcan", "RCAN", 0.0),
        ("edsr", "RCAN", 1e-5),
        ("span", "SPAN", 1e-5),
        ("swinir_light", "SwinIR", 1e-5),
    ],
)
def test_spandrel_detects_the_weights_and_gives_the_same_picture(
    name: str, id: str, tolerance: float, scale: int
) -> None:
    model = shaken(small(name, scale))
    descriptor = opened_by_spandrel(model.spandrel_state_dict())
    assert (str(descriptor.architecture.id), descriptor.scale) == (id, scale)
    for height, width in ((16, 24), (19, 33)):
        x = torch.rand(1, 3, height, width)
        with torch.no_grad():
            expected = model(x)
            # spandrel's RCAN multiplies its input in place
            found = descriptor.model.eval()(x.clone())[..., : height * scale, : width * scale]
        assert 0.05 < expected.std() < 2
        assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["rcan", "swinir_light", "span", "edsr", "compact"])
def test_spandrel_opens_the_published_sizes(name: str) -> None:
    model = shaken(students.build(name, 4))
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        found = opened_by_spandrel(model.spandrel_state_dict())(x.clone())
        assert (found - model(x).clamp(0, 1)).abs().max() <= 1e-5


def test_span_without_normalisation_is_seen_by_spandrel() -> None:
    model = shaken(small("span", norm=False))
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(
            opened_by_spandrel(model.spandrel_state_dict())(x), model(x).clamp(0, 1), atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "scale", "options", "told"),
    [
        ("edsr", 5, {}, "scale 1, 2, 3 or 4"),
        ("esdr", 2, {}, "spandrel:<Id>"),
        ("edsr", 2, {"block": 4}, "blocks, features, res_scale"),
        ("edsr", 2, {"blocks": 0}, "greater than or equal to 1"),
        ("edsr", 2, {"blocks": "many"}, "integer"),
        ("fsrcnn", 2, {"head": "conv"}, "'deconv' or 'pixelshuffle'"),
        ("fsrcnn", 2, {"colours": 2}, "1 or 3"),
        ("spandrel:Nix", 2, {}, "PLKSR"),
        ("spandrel:SAFMN", 2, {}, "a value for dim"),
        ("spandrel:SAFMN", 2, {"dims": 8}, "dim, n_blocks"),
        ("spandrel:SAFMN", 2, {"dim": "wide"}, "hyper-parameters that fit"),
        ("spandrel:LaMa", 2, {}, "hyper-parameters that fit"),
        ("spandrel:DRCT", 2, {"embed_dim": 12, "depths": [1], "num_heads": [1]}, "of scale 2"),
    ],
)
def test_wrong_names_and_options_are_explained(
    name: str, scale: int, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told.replace("(", r"\(")):
        students.build(name, scale, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PLKSR", {"dim": 16, "n_blocks": 1}),
        ("RealPLKSR", {"dim": 16, "n_blocks": 1}),
        ("SAFMN", {"dim": 12, "n_blocks": 1}),
        ("RealCUGAN", {}),
        ("SPAN", {"feature_channels": 12}),
    ],
)
def test_spandrel_architectures_by_name(name: str, options: dict[str, Any]) -> None:
    model = students.build(f"spandrel:{name}", 2, **options)
    assert model.training
    x = torch.rand(1, 3, 21, 18)
    y = model(x)
    assert y.shape == (1, 3, 42, 36)
    y.mean().backward()
    with torch.no_grad():
        found = opened_by_spandrel(model.eval().spandrel_state_dict())(x)
        assert torch.allclose(found, model(x).clamp(0, 1), atol=1e-5)


def test_a_spandrel_student_leaves_its_input_alone() -> None:
    model = students.build("spandrel:RCAN", 2, n_resgroups=1, n_resblocks=1, n_feats=16)
    x = torch.rand(1, 3, 8, 8)
    before = x.clone()
    model(x)
    assert torch.equal(x, before)
