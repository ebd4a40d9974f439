"""Methods: what each term is, against formulas written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.methods import PICTURES
from pipeline.methods.mtkd import aggregation, network
from pipeline.recipe.fusion import Aggregate
from pipeline.recipe.methods import KD, MTKD, Scratch
from pipeline.recipe.schedule import Piecewise, Ramp, weight_at
from pipeline.recipe.settings import Train


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def rand(side: int) -> torch.Tensor:
        return torch.rand(4, 3, side, side, generator=generator)

    return {
        "lr": rand(6),
        "hr": rand(12),
        "target": rand(12),
        "has_hr": torch.tensor([True, True, False, True]),
    }


def haar_loss(prediction: np.ndarray, target: np.ndarray) -> float:
    """MTKD's wavelet loss with K = 1, on pywt: mean |details|, all three bands together, plus mean |LL|."""
    total_high, total_low = [], []
    for b in range(prediction.shape[0]):
        for c in range(3):
            p = pywt.dwt2(prediction[b, c], "haar", mode="zero")
            t = pywt.dwt2(target[b, c], "haar", mode="zero")
            total_low.append(np.abs(p[0] - t[0]))
            total_high.append(np.abs(np.array(p[1]) - np.array(t[1])))
    return float(np.mean(total_high) + np.mean(total_low))


def test_mtkd_is_the_wavelet_loss_on_the_fused_target_and_l1_on_hr(batch: dict) -> None:
    phase = PICTURES["mtkd"](MTKD(name="mtkd"), Train(), student)[0]({})
    terms = phase.losses(phase.modules, batch)
    sr = phase.modules["student"](batch["lr"]).detach()
    assert phase.weights == {"distill": 1.0, "hr": 0.1, "relational": 0.0}
    assert float(terms["distill"]) == pytest.approx(haar_loss(sr.numpy(), batch["target"].numpy()), rel=1e-5)
    known = (sr - batch["hr"]).abs()[batch["has_hr"]]
    assert float(terms["hr"]) == pytest.approx(float(known.sum()) / sr.numel(), rel=1e-5)


@pytest.mark.parametrize(
    "fading", [Ramp(kind="linear", start=1.0, end=0.0), Piecewise(kind="piecewise", points=((0, 1), (1, 0)))]
)
def test_a_low_band_that_fades_is_a_term_of_its_own(batch: dict, fading: Ramp | Piecewise) -> None:
    phase = PICTURES["mtkd"](MTKD(name="mtkd", distill=0.5, low=fading), Train(), student)[0]({})
    terms = phase.losses(phase.modules, batch)
    sr = phase.modules["student"](batch["lr"]).detach()
    whole = haar_loss(sr.numpy(), batch["target"].numpy())
    low = (
        float(F.avg_pool2d(sr - batch["target"], 2).abs().mean()) * 2
    )  # Haar's low band: half the sum of four
    assert float(terms["low"]) == pytest.approx(low, rel=1e-4)
    assert float(terms["distill"]) == pytest.approx(whole - low, rel=1e-4)
    assert [weight_at(phase.weights["low"], p) for p in (0, 0.5, 1)] == [0.5, 0.25, 0.0]
    for more in ({"handover": (0.5, 0.9)}, {"distill": fading}):
        with pytest.raises(ValueError, match="constant `distill`"):
            MTKD(name="mtkd", low=fading, **more)


def test_kd_is_l1_on_the_teacher_and_l1_on_hr(batch: dict) -> None:
    phase = PICTURES["kd"](KD(name="kd"), Train(), student)[0]({})
    terms = phase.losses(phase.modules, batch)
    sr = phase.modules["student"](batch["lr"]).detach()
    assert float(terms["distill"]) == pytest.approx(float((sr - batch["target"]).abs().mean()), rel=1e-6)
    assert phase.weights == {"distill": 1.0, "hr": 1.0, "gradient": 0.0} and terms.keys() == {"distill", "hr"}


def test_charbonnier_and_the_gradient_term_by_their_formulas(batch: dict) -> None:
    method = KD(name="kd", pixel="charbonnier", gradient=0.5)
    phase = PICTURES["kd"](method, Train(), student)[0]({})
    terms = phase.losses(phase.modules, batch)
    sr, target = phase.modules["student"](batch["lr"]).detach().numpy(), batch["target"].numpy()
    smooth = np.sqrt((sr - target).astype(np.float64) ** 2 + 1e-6)
    assert float(terms["distill"]) == pytest.approx(smooth.mean(), rel=1e-6)
    known = np.sqrt((sr - batch["hr"].numpy()).astype(np.float64) ** 2 + 1e-6)[batch["has_hr"].numpy()]
    assert float(terms["hr"]) == pytest.approx(known.sum() / sr.size, rel=1e-6)
    down, across = (np.abs(np.diff(sr, axis=a) - np.diff(target, axis=a)).mean() for a in (2, 3))
    assert float(terms["gradient"]) == pytest.approx(float(down + across), rel=1e-5)
    assert phase.weights["gradient"] == 0.5
    for name in ("scratch", "mtkd"):
        made = {"scratch": Scratch, "mtkd": MTKD}[name](name=name, pixel="charbonnier")
        built = PICTURES[name](made, Train(), student)[0]({})
        own = built.modules["student"](batch["lr"]).detach().numpy()
        keep = slice(None) if name == "scratch" else batch["has_hr"].numpy()
        error = np.sqrt((own - batch["hr"].numpy()).astype(np.float64) ** 2 + 1e-6)[keep]
        assert float(built.losses(built.modules, batch)["hr"]) == pytest.approx(
            error.sum() / own.size, rel=1e-6
        )


def test_what_is_left_at_its_default_is_in_no_dump() -> None:
    for method in (KD(name="kd"), MTKD(name="mtkd"), Scratch(name="scratch")):
        assert not {"pixel", "gradient", "assistant"} & set(method.model_dump())
    assert KD(name="kd", gradient=0.1).model_dump()["gradient"] == 0.1


def test_scratch_reads_no_target_and_leaves_out_tiles_without_hr(batch: dict) -> None:
    phase = PICTURES["scratch"](Scratch(name="scratch"), Train(), student)[0]({})
    assert phase.sources == ("lr", "hr") and phase.require_hr
    sr = phase.modules["student"](batch["lr"]).detach()
    terms = phase.losses(phase.modules, batch)
    assert float(terms["hr"]) == pytest.approx(float((sr - batch["hr"]).abs().mean()), rel=1e-6)


def test_a_student_without_hr_learns_from_the_target_alone(batch: dict) -> None:
    phase = PICTURES["mtkd"](MTKD(name="mtkd"), Train(), student)[0]({})
    batch["has_hr"] = torch.zeros(4, dtype=torch.bool)
    terms = phase.losses(phase.modules, batch)
    assert float(terms["hr"]) == 0.0 and float(terms["distill"]) > 0.0


def test_the_gradient_of_every_term_reaches_the_student(batch: dict) -> None:
    for method in (
        MTKD(name="mtkd"),
        MTKD(name="mtkd", dual_tree=True),
        MTKD(name="mtkd", wavelet="db2", level=2),
    ):
        phase = PICTURES["mtkd"](method, Train(), student)[0]({})
        for term in phase.losses(phase.modules, batch).values():
            phase.modules["student"].zero_grad()
            term.backward(retain_graph=True)
            assert all(float(p.grad.abs().sum()) > 0 for p in phase.modules["student"].parameters())


def test_the_aggregation_phase_starts_at_the_teachers_mean(batch: dict) -> None:
    config = Aggregate(kind="aggregate", dim=16, depths=(1,), heads=(2,))
    phase = aggregation(config, 2, 2)[0]({})
    batch |= {"teacher0": batch["target"], "teacher1": batch["hr"].flip(0)}
    mean = (batch["teacher0"] + batch["teacher1"]) / 2
    terms = phase.losses(phase.modules, batch)
    assert float(terms["hr"]) == pytest.approx(float((mean - batch["hr"]).abs().mean()), rel=1e-5)
    assert phase.sources == ("lr", "hr", "teacher0", "teacher1") and phase.inputs == ("teacher0", "teacher1")


def test_the_released_behaviour_has_no_skip() -> None:
    assert network(Aggregate(kind="aggregate", official=True), 3, 4).skip == "none"
    assert network(Aggregate(kind="aggregate"), 3, 4).skip == "mean"
