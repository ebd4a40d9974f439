"""The wavelet transform against pywt, gradients against finite differences, the loss against its equation."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch

from pipeline.errors import InputError
from pipeline.losses.wavelet import MODES, WaveletLoss, analysis_matrix, dwt2

SIZES = [(16, 24), (13, 17), (18, 7), (2, 3)]

pytestmark = pytest.mark.filterwarnings("ignore:Level value")


def pictures(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return tuple(torch.rand(shape, generator=generator, dtype=dtype) for _ in range(2))


def published(prediction: torch.Tensor, target: torch.Tensor, wavelet: str, level: int, mode: str) -> float:
    """The loss written out with pywt, band by band over the whole batch."""
    low_p, *details_p = pywt.wavedec2(prediction.detach().double().numpy(), wavelet, mode, level)
    low_q, *details_q = pywt.wavedec2(target.detach().double().numpy(), wavelet, mode, level)
    terms = [np.abs(np.stack(p) - np.stack(q)).mean() for p, q in zip(details_p, details_q)]
    return float(np.abs(low_p - low_q).mean() + sum(terms))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4", "bior4.4", "rbio3.1"])
def test_the_transform_equals_pywt(wavelet: str, mode: str, size: tuple[int, int]) -> None:
    x, _ = pictures(2, 3, *size)
    level = 1 if min(size) < 3 else 3
    low, *details = pywt.wavedec2(x.numpy(), wavelet, mode, level)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        ours, bands = dwt2(x.to(dtype), wavelet, mode, level)
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours.numpy(), low, atol=tolerance, rtol=tolerance)
        assert len(bands) == level
        for finest_first, theirs in zip(bands, reversed(details)):
            np.testing.assert_allclose(
                finest_first.numpy(), np.stack(theirs, 2), atol=tolerance, rtol=tolerance
            )


@pytest.mark.slow
@pytest.mark.parametrize("wavelet", pywt.wavelist(kind="discrete"))
def test_every_wavelet_of_pywt(wavelet: str) -> None:
    for mode in MODES:
        for size in SIZES:
            x, _ = pictures(1, 2, *size)
            low, (h, v, d) = pywt.wavedec2(x.numpy(), wavelet, mode, 1)
            ours, (bands,) = dwt2(x, wavelet, mode)
            np.testing.assert_allclose(ours.numpy(), low, atol=1e-9)
            np.testing.assert_allclose(bands.numpy(), np.stack([h, v, d], 2), atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior4.4"])
def test_the_transform_has_the_right_gradient(wavelet: str, mode: str, size: tuple[int, int]) -> None:
    x, _ = pictures(1, 1, *size)

    def flat(x: torch.Tensor) -> torch.Tensor:
        low, details = dwt2(x, wavelet, mode, 2)
        return torch.cat([low.flatten(), *(bands.flatten() for bands in details)])

    assert torch.autograd.gradcheck(flat, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_the_transform_can_be_differentiated_twice(wavelet: str) -> None:
    x, _ = pictures(1, 1, 3, 4)
    assert torch.autograd.gradgradcheck(lambda x: dwt2(x, wavelet)[0].square(), x.requires_grad_())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(8, 12), (7, 12), (9, 5)])
@pytest.mark.parametrize(
    ("wavelet", "level"), [("haar", 1), ("haar", 2), ("haar", 3), ("db2", 1), ("sym4", 2)]
)
def test_the_loss_is_the_published_one_with_its_gradient(
    wavelet: str, level: int, mode: str, size: tuple[int, int]
) -> None:
    if mode == "reflect" and size[1] == 5 and level == 3:
        size = (9, 6)
    prediction, target = pictures(2, 2, *size)
    loss = WaveletLoss(wavelet, level, mode)
    assert loss(prediction, target).item() == pytest.approx(
        published(prediction, target, wavelet, level, mode)
    )
    pair = (prediction.requires_grad_(), target.requires_grad_())
    assert torch.autograd.gradcheck(loss, pair, fast_mode=True)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_every_picture_of_the_batch_counts(wavelet: str) -> None:
    _, target = pictures(5, 3, 8, 8, dtype=torch.float32)
    for spoiled in range(5):
        for level in (1, 2, 3):
            prediction = target.clone()
            prediction[spoiled] += 0.5
            prediction.requires_grad_()
            value = WaveletLoss(wavelet, level, "symmetric")(prediction, target)
            assert value.item() == pytest.approx(2**level * 0.5 / 5, rel=1e-4)
            value.backward()
            assert prediction.grad[spoiled].abs().min() > 0


def test_the_haar_sweep_equals_the_plain_loss_at_patch_size() -> None:
    prediction, target = pictures(7, 3, 190, 189, dtype=torch.float32)
    prediction.requires_grad_()
    value = WaveletLoss(level=3, mode="symmetric")(prediction, target)
    value.backward()
    low, details = dwt2(prediction - target, "haar", "symmetric", 3)
    plain = low.abs().mean() + sum(bands.abs().mean() for bands in details)
    (expected,) = torch.autograd.grad(plain, prediction)
    assert value.item() == pytest.approx(plain.item(), rel=1e-5)
    torch.testing.assert_close(prediction.grad, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("level", [1, 2])
def test_the_memory_format_does_not_matter(wavelet: str, level: int) -> None:
    prediction, target = pictures(3, 3, 16, 12, dtype=torch.float32)
    loss = WaveletLoss(wavelet, level)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        p = prediction.clone().contiguous(memory_format=memory_format).requires_grad_()
        value = loss(p, target.contiguous(memory_format=memory_format))
        value.backward()
        results.append((value, p.grad))
        assert p.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_autocast_does_not_lower_the_precision(wavelet: str) -> None:
    prediction, target = pictures(2, 3, 16, 16, dtype=torch.float32)
    loss = WaveletLoss(wavelet, 2)
    expected = loss(prediction, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = dwt2(prediction, wavelet)
        value = loss(prediction, target)
    assert low.dtype == value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pictures_are_compared_in_single(wavelet: str, dtype: torch.dtype) -> None:
    prediction, target = pictures(2, 3, 16, 16, dtype=torch.float32)
    prediction = prediction.to(dtype).requires_grad_()
    value = WaveletLoss(wavelet)(prediction, target)
    value.backward()
    assert value.dtype == torch.float32 and prediction.grad.dtype == dtype
    assert value.item() == pytest.approx(WaveletLoss(wavelet)(prediction.float(), target).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_pixel_shows_in_the_loss(bad: float) -> None:
    prediction, target = pictures(2, 3, 16, 16, dtype=torch.float32)
    prediction[1, 2, 3, 4] = bad
    assert not torch.isfinite(WaveletLoss(level=2)(prediction, target))


def test_equal_pictures_cost_nothing_and_pull_nowhere() -> None:
    prediction, _ = pictures(2, 3, 16, 16, dtype=torch.float32)
    prediction.requires_grad_()
    value = WaveletLoss(level=2)(prediction, prediction.detach().clone())
    value.backward()
    assert value == 0 and torch.count_nonzero(prediction.grad) == 0


def test_two_backward_passes_over_one_loss_add_up() -> None:
    prediction, target = pictures(2, 1, 8, 8)
    prediction.requires_grad_()
    value = WaveletLoss()(prediction, target)
    value.backward(retain_graph=True)
    once = prediction.grad.clone()
    (3 * value).backward()
    torch.testing.assert_close(prediction.grad, 4 * once)


def test_a_matrix_first_made_in_inference_mode_serves_training() -> None:
    analysis_matrix.cache_clear()
    prediction, target = pictures(1, 1, 10, 10)
    loss = WaveletLoss("db3")
    with torch.inference_mode():
        loss(prediction, target)
    prediction = prediction.clone().requires_grad_()
    loss(prediction, target).backward()
    assert prediction.grad.abs().sum() > 0


def test_dual_tree_hardly_changes_under_a_shift() -> None:
    """Haar's detail energy of an edge depends on its column; the dual tree's hardly does."""
    pytest.importorskip("pytorch_wavelets")
    costs: dict[bool, list[float]] = {False: [], True: []}
    flat = torch.zeros(1, 1, 64, 64)
    for column in range(28, 36):
        edge = flat.clone()
        edge[..., column:] = 1.0
        for dual_tree in costs:
            loss = WaveletLoss(level=3, dual_tree=dual_tree)
            with torch.no_grad():
                # Half the edge's own mean leaves the low band; what is left varies with the details.
                costs[dual_tree].append(loss(edge, edge.mean() + flat).item())
    spread = {k: (max(v) - min(v)) / np.mean(v) for k, v in costs.items()}
    assert spread[True] < 0.5 * spread[False]


def test_dual_tree_gradient() -> None:
    pytest.importorskip("pytorch_wavelets")
    loss = WaveletLoss(level=2, dual_tree=True)
    prediction, target = pictures(1, 1, 16, 16)
    assert torch.autograd.gradcheck(lambda p: loss(p, target), prediction.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("morl",), "discrete wavelet"), (("haar", 0), "level"), (("haar", 1, "wrap"), "wavelet mode")],
)
def test_unknown_settings_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WaveletLoss(*arguments)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_reflection_of_a_single_pixel_is_refused(wavelet: str) -> None:
    x = torch.rand(1, 1, 1, 8)
    with pytest.raises(InputError, match="reflect"):
        dwt2(x, wavelet, "reflect")


def test_pictures_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        WaveletLoss()(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))


@pytest.mark.gpu
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_cuda_agrees_with_cpu(wavelet: str) -> None:
    prediction, target = pictures(3, 3, 33, 30, dtype=torch.float32)
    loss = WaveletLoss(wavelet, 2, "symmetric")
    results = []
    for device in ("cpu", "cuda"):
        p = prediction.detach().to(device).requires_grad_()  # a leaf on each device
        value = loss(p, target.to(device))
        value.backward()
        results.append((value.detach().cpu(), p.grad.cpu()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("low", [0.0, 1 / 3, 2.5])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_the_low_band_has_a_weight_of_its_own(wavelet: str, low: float) -> None:
    prediction = torch.rand(2, 3, 12, 10, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 12, 10, dtype=torch.float64)
    value = WaveletLoss(wavelet, 2, "symmetric", low=low)(prediction, target)
    bands = pywt.wavedec2((prediction - target).detach().numpy(), wavelet, mode="symmetric", level=2)
    details = sum(np.abs(np.stack(level)).mean() for level in bands[1:])
    assert value.item() == pytest.approx(low * np.abs(bands[0]).mean() + details, rel=1e-12)
    (slope,) = torch.autograd.grad(value, prediction)
    ll, high = dwt2(prediction - target, wavelet, "symmetric", 2)
    slow = low * ll.abs().mean() + sum(b.abs().mean() for b in high)
    assert torch.allclose(slope, torch.autograd.grad(slow, prediction)[0], atol=1e-15)
