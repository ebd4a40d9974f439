"""PISR: the teacher that sees HR, the two phases, what is handed over, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import students
from pipeline.errors import InputError
from pipeline.losses.relational import angles, distances
from pipeline.losses.variational import VID
from pipeline.methods import PICTURES
from pipeline.methods.pisr import TEACHER, pisr, start, teacher
from pipeline.methods.taps import Tap, Until, channels, layer_of
from pipeline.recipe.methods import MTKD, PISR
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import Train
from pipeline.tasks.super_resolution.jobs import check_helpers
from students.colour import luma
from teachers.privileged import ENCODER_PARAMETERS, Encoder, Privileged

SMALL = {"d": 8, "s": 4, "m": 1, "colours": 1}


def decoder(**options: object) -> nn.Module:
    torch.manual_seed(3)
    return students.build("fsrcnn", 2, **{**SMALL, **options})


def privileged(**options: object) -> Privileged:
    network = decoder(**options)
    return Privileged(Encoder(2, colours=network.colours), network)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def rand(side: int) -> torch.Tensor:
        return torch.rand(2, 3, side, side, generator=generator)

    return {"lr": rand(8), "hr": rand(16), "target": rand(16), "has_hr": torch.tensor([True, True])}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_encoder_has_the_published_size_and_makes_a_code_of_lr_size(scale: int) -> None:
    encoder = Encoder(scale)
    assert sum(p.numel() for p in encoder.parameters()) == ENCODER_PARAMETERS == 86_084
    hr = torch.rand(1, 1, 7 * scale, 5 * scale)
    with torch.no_grad():
        code = encoder(hr)
    assert code.shape == (1, 1, 7, 5)
    if scale < 4:  # a 5x5 kernel does not reach over a box of 4
        assert torch.allclose(code, nn.functional.avg_pool2d(hr, scale), atol=1e-5)


def test_the_whole_teacher_of_the_paper_has_98728_parameters() -> None:
    network = Privileged(Encoder(2), students.build("fsrcnn", 2, colours=1))
    assert sum(p.numel() for p in network.parameters()) == 98_728


def test_phase_one_is_reconstruction_and_imitation(batch: dict) -> None:
    (build,) = teacher(PISR(name="pisr"), Train(), decoder, 2)
    phase = build({})
    terms = phase.losses(phase.modules, batch)
    network, y, x = phase.modules[TEACHER], luma(batch["hr"]), luma(batch["lr"])
    with torch.no_grad():
        code = network.encoder(y)
        assert float(terms["imitation"]) == pytest.approx(float((code - x).abs().mean()), rel=1e-6)
        assert float(terms["hr"]) == pytest.approx(float((network.decoder(code) - y).abs().mean()), rel=1e-6)
    assert phase.weights == {"hr": 1.0, "imitation": 1e-4} and phase.inputs == ("hr",)
    with torch.no_grad():
        shown = phase.shown(network, batch["hr"])
    assert shown.shape == (2, 3, 8, 8) and torch.allclose(shown.amin((1, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(shown.amax((1, 2, 3)), torch.ones(2), atol=1e-5)


def test_phase_two_starts_as_the_decoder_and_follows_its_features(batch: dict) -> None:
    taught = privileged()
    phase = pisr(PISR(name="pisr"), Train(), lambda: decoder(m=1))[0]({TEACHER: taught})
    student, vid = phase.modules["student"], phase.modules["vid"]
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), taught.decoder.state_dict().values())
    )
    terms = phase.losses(phase.modules, batch)
    with torch.no_grad():
        y, x = luma(batch["hr"]), luma(batch["lr"])
        f_t = Until(taught.decoder, "expanding")(taught.encoder(y))
        f_s = Until(student, "expanding")(x)
        assert isinstance(vid, VID) and float(terms["vid"]) == pytest.approx(float(vid(f_s, f_t)), rel=1e-5)
        assert float(terms["hr"]) == pytest.approx(float((student(x) - y).abs().mean()), rel=1e-6)
    assert phase.weights["vid"] == 1e-6 and phase.require_hr
    terms["vid"].backward()
    assert student.expanding[0].weight.grad.abs().sum() > 0 and student.last_layer.weight.grad is None
    assert all(p.grad is None for p in phase.frozen[TEACHER].parameters())


def test_init_alone_runs_no_teacher_and_a_fused_target_adds_mtkds_term(batch: dict) -> None:
    phase = pisr(PISR(name="pisr", vid=0.0), Train(), decoder)[0]({TEACHER: privileged()})
    assert not phase.frozen and set(phase.modules) == {"student"}
    assert set(phase.losses(phase.modules, batch)) == {"hr"}
    after = PISR(name="pisr", vid=0.0, distill=1.0, hr=0.1)
    phase = pisr(after, Train(), decoder)[0]({TEACHER: privileged()})
    batch["has_hr"] = torch.tensor([True, False])
    terms = phase.losses(phase.modules, batch)
    same = PICTURES["mtkd"](_mtkd(), Train(), lambda: phase.modules["student"])[0]({})
    expected = same.losses(same.modules, batch)
    assert after.target == "fused" and not phase.require_hr
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(
        {k: float(v) for k, v in expected.items()}
    )


def test_a_relational_term_compares_the_batches_features(batch: dict) -> None:
    batch = {k: torch.cat([v, v.flip(0).roll(3, -1) if v.ndim == 4 else v]) for k, v in batch.items()}
    method = PISR(name="pisr", vid=0.0, relational=0.5)
    phase = pisr(method, Train(), decoder)[0]({TEACHER: privileged()})
    assert set(phase.modules) == {"student"} and phase.weights["relational"] == 0.5
    terms = phase.losses(phase.modules, batch)
    student, taught = phase.modules["student"], phase.frozen[TEACHER]
    with torch.no_grad():
        f_s = Until(student, "expanding")(luma(batch["lr"])).mean((-2, -1))
        f_t = Until(taught.decoder, "expanding")(taught.code(batch["hr"])).mean((-2, -1))
        expected = float(distances(f_s, f_t) + 2 * angles(f_s, f_t))
    assert float(terms["relational"].detach()) == pytest.approx(expected, rel=1e-5) and expected > 0
    terms["relational"].backward()
    assert student.mapping[0].weight.grad.abs().sum() > 0


def test_mtkds_relational_term_is_0_for_equal_pictures_and_has_a_gradient_for_others(batch: dict) -> None:
    batch = {k: torch.cat([v, v.flip(0).roll(3, -1) if v.ndim == 4 else v]) for k, v in batch.items()}
    student = decoder(colours=3)  # a start by nearest neighbours has no finest details at all
    phase = PICTURES["mtkd"](MTKD(name="mtkd", relational=0.1), Train(), lambda: student)[0]({})
    terms = phase.losses(phase.modules, batch)
    assert float(terms["relational"].detach()) > 0 and phase.weights["relational"] == 0.1
    terms["relational"].backward()
    assert sum(p.grad.abs().sum() for p in student.parameters() if p.grad is not None) > 0
    batch["target"] = student(batch["lr"]).detach()
    assert float(phase.losses(phase.modules, batch)["relational"].detach()) == pytest.approx(0.0, abs=1e-5)


def _mtkd() -> object:
    return MTKD(name="mtkd", low=1 / 3)


def test_a_layer_that_does_not_exist_lists_those_that_do() -> None:
    with pytest.raises(InputError, match=r"method\.layer.*mapping.*expanding.*last_layer.*'expand'"):
        pisr(PISR(name="pisr", layer="expand"), Train(), decoder)
    plain = students.build("compact", 2, features=8, convs=1)
    assert pisr(PISR(name="pisr", vid=0.0), Train(), lambda: plain), "its start alone compares no layer"
    with pytest.raises(InputError, match="has no usual one"):
        pisr(PISR(name="pisr"), Train(), lambda: plain)
    with pytest.raises(InputError, match="has no usual one"):
        layer_of(students.build("compact", 2, features=8, convs=1), None)
    with pytest.raises(InputError, match=r"features \(B, C, h, w\)"):
        channels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "1")


def test_features_are_cut_out_where_asked_and_the_rest_is_not_run() -> None:
    network = decoder()
    ran: list[str] = []
    network.last_layer.register_forward_hook(lambda *_: ran.append("last"))
    x = torch.rand(1, 1, 6, 6)
    tap = Tap(network, "expanding")
    network(x)
    assert ran == ["last"]
    assert torch.equal(Until(network, "expanding")(x), tap.take()) and ran == ["last"]


@pytest.mark.parametrize(
    ("name", "layer"), [("vdsr", "body.0"), ("edsr", "body.0.body.0"), ("rcan", "body.0.body.0.body.0")]
)
def test_a_layer_before_one_that_works_in_place_is_seen_as_it_was(name: str, layer: str) -> None:
    """The student's features are kept while the network runs on; the teacher's stop at the layer."""
    small = {"vdsr": {"features": 4, "depth": 3}, "edsr": {"features": 4, "blocks": 1}}
    options = small.get(name, {"features": 16, "groups": 1, "blocks": 1})
    network = students.build(name, 2, **options)
    x = torch.rand(1, 3, 8, 8)
    expected = Until(network, layer)(x)
    tap = Tap(network, layer)
    untouched = network(x)
    found = tap.take()
    assert torch.equal(found, expected) and found.min() < 0
    assert torch.equal(network(x), untouched)


def test_there_is_no_privileged_teacher_at_one_scale() -> None:
    for kind, refused in (("privileged", True), ("larger", False)):
        method = {"name": "pisr", "teacher": kind, "init": kind == "privileged"}
        settings = Recipe.model_validate(
            {"name": "r", "scale": 1, "data": {"train": ["x"]}, "student": {"name": "vdsr"}, "method": method}
        )
        if not refused:
            check_helpers(settings)
            continue
        with pytest.raises(InputError, match="method.teacher: privileged: .*a scale of 2, 3 or 4"):
            check_helpers(settings)


def test_a_decoder_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"shrinking.*\(4, 8, 1, 1\)|student's own architecture"):
        start(decoder(), decoder(s=3))


def test_hr_whose_size_is_no_multiple_of_the_scale_is_refused() -> None:
    with pytest.raises(InputError, match=r"multiples of the scale 2.*15x16 pixels"):
        privileged()(torch.rand(1, 3, 16, 15))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "larger"}, "set init: false"),
        ({"larger": {"d": 9}}, "belongs to teacher: larger"),
        ({"init": False, "vid": 0}, "take method scratch"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PISR(name="pisr", **settings)
