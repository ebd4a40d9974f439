"""The steps of degradation chains against second computations, and views as pure functions of what names them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import natural_picture
from PIL import Image
from road_kit import REPOSITORY, environment

from pipeline.data.chain import (
    blurred,
    compressed,
    degraded,
    drawn_kernel,
    gaussian,
    gaussian_noise,
    generator,
    poisson_noise,
    resized,
    sinc,
)
from pipeline.data.presets import PRESETS, steps_of
from pipeline.data.tiles import Grid, positions, tile_id
from pipeline.data.views import views, whole
from pipeline.errors import InputError
from pipeline.recipe.degradation import Blur, Chain, Compression, Fit, Noise, Resize, Shuffle
from pipeline.recipe.reading import checked
from pipeline.recipe.recipe import Data

SHA = hashlib.sha256(b"a picture").hexdigest()


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, SHA, 0, 0, 0)


def bessel(z: float) -> float:
    """J1 by its power series."""
    return sum(
        (-1) ** k / (math.factorial(k) * math.factorial(k + 1)) * (z / 2) ** (2 * k + 1) for k in range(60)
    )


# --- blur


def test_blurring_is_the_sum_that_it_stands_for() -> None:
    x = natural_picture(12, 15, 1).astype(np.float32)
    kernel = gaussian(5, 0.8, 2.0, 0.7)
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), "symmetric").astype(np.float64)
    slow = np.zeros(x.shape)
    for y in range(12):
        for z in range(15):
            slow[y, z] = (padded[y : y + 5, z : z + 5] * kernel[::-1, ::-1, None]).sum((0, 1))
    assert np.abs(blurred(x, kernel) - slow).max() < 1e-3


def test_a_gaussian_has_the_covariance_that_it_is_given() -> None:
    kernel = gaussian(63, 2.0, 5.0, math.pi / 6)
    y, x = np.mgrid[:63, :63] - 31
    found = [(kernel * a * b).sum() for a, b in ((x, x), (x, y), (y, y))]
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    assert found == pytest.approx(
        [4 * c * c + 25 * s * s, (4 - 25) * c * s, 4 * s * s + 25 * c * c], rel=1e-3
    )
    assert kernel.sum() == pytest.approx(1)


def test_generalised_gaussians_and_plateaus_fall_as_they_say() -> None:
    for power in (0.5, 1.0, 3.0):
        kernel, flat = gaussian(9, 2, 2, 0, power), gaussian(9, 2, 2, 0, power, plateau=True)
        at = ((np.arange(5) / 2) ** 2) ** power
        assert kernel[4, 4:] / kernel[4, 4] == pytest.approx(np.exp(-at / 2))
        assert flat[4, 4:] / flat[4, 4] == pytest.approx(1 / (1 + at))


def test_sinc_is_the_circular_low_pass() -> None:
    kernel = sinc(9, 1.3)
    raw = np.array(
        [
            [1.3**2 / (4 * math.pi) if r == 0 else 1.3 * bessel(1.3 * r) / (2 * math.pi * r) for r in row]
            for row in np.hypot(*(np.mgrid[:9, :9] - 4))
        ]
    )
    assert np.abs(kernel - raw / raw.sum()).max() < 1e-12 and kernel.min() < 0


def test_drawn_kernels_keep_to_their_settings() -> None:
    step = Blur(kind="blur", shapes={"aniso": 1, "sinc": 1}, size=(7, 12), sigma=(1.5, 1.6))
    notes = [drawn_kernel(step, rng(seed)) for seed in range(60)]
    sides = {kernel.shape[0] for kernel, _ in notes}
    assert sides == {7, 9, 11} and all(kernel.sum() == pytest.approx(1) for kernel, _ in notes)
    shapes = [note.split()[1] for _, note in notes]
    assert 15 < shapes.count("sinc") < 45 and set(shapes) == {"aniso", "sinc"}
    assert all(1.5 <= float(note.split()[3]) <= 1.6 for _, note in notes if "aniso" in note)


# --- size, noise, files


def test_sizes_are_pillows_and_a_box_is_the_mean() -> None:
    x = natural_picture(24, 36, 2).astype(np.float32)
    assert resized(x, (12, 18), "area") == pytest.approx(x.reshape(12, 2, 18, 2, 3).mean((1, 3)), abs=1e-3)
    plane = Image.fromarray(x[..., 1]).resize((11, 7), Image.Resampling.LANCZOS)
    assert np.array_equal(resized(x, (7, 11), "lanczos")[..., 1], np.asarray(plane))


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise_has_its_mean_and_deviation(grey: bool) -> None:
    noise = gaussian_noise(np.zeros((200, 200, 3), np.float32), 12.0, grey, rng())
    n = noise.size
    assert noise.shape[2] == (1 if grey else 3)
    assert abs(noise.mean()) < 5 * 12 / math.sqrt(n) and abs(noise.std() - 12) < 5 * 12 / math.sqrt(2 * n)


def test_poisson_noise_grows_with_the_light() -> None:
    x = np.full((200, 300, 3), 40, np.float32)
    x[:, 150:] = 160
    x[0, :, 0] = np.arange(300) % 250  # about 256 levels: 256 photons at white
    for scale in (0.5, 2.0):
        noise = poisson_noise(x, scale, False, rng())[1:]
        for part, level in ((noise[:, :150], 40), (noise[:, 150:], 160)):
            variance = 255 * scale**2 * level / 256
            assert abs(part.mean()) < 5 * math.sqrt(variance / part.size)
            assert part.var() == pytest.approx(variance, rel=0.05)
    assert poisson_noise(x, 1.0, True, rng()).shape == (200, 300, 1)


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_files_give_back_what_pillow_gives_back(kind: str) -> None:
    x = natural_picture(40, 48, 3)
    file = io.BytesIO()
    Image.fromarray(x).save(file, kind, quality=37)
    back = np.asarray(Image.open(file).convert("RGB"))
    steps = (Compression(kind=kind, quality=(37, 37)),)
    found, made = degraded(x, (40, 48), steps, rng())
    assert np.array_equal(found, back) and made == f"{kind} 37" and not np.array_equal(found, x)
    assert np.array_equal(compressed(x.astype(np.float32), kind, 37), back)


# --- chains


def test_steps_happen_as_often_and_in_the_order_that_they_say() -> None:
    x = natural_picture(32, 32, 4)
    seldom = (Compression(kind="jpeg", p=0.3, quality=(50, 50)),)
    done = [degraded(x, (32, 32), seldom, rng(seed))[1] for seed in range(200)]
    assert 40 < done.count("jpeg 50") < 80 and set(done) == {"", "jpeg 50"}
    parts = tuple((Compression(kind="jpeg", quality=(q, q)),) for q in (31, 52, 73))
    orders = {degraded(x, (32, 32), (Shuffle(kind="shuffle", groups=parts),), rng(s))[1] for s in range(80)}
    assert len(orders) == 6 and all(len(order.split("; ")) == 3 for order in orders)
    one = {
        degraded(x, (32, 32), (Shuffle(kind="shuffle", groups=parts, take=1),), rng(s))[1] for s in range(40)
    }
    assert one == {"jpeg 31", "jpeg 52", "jpeg 73"}


def test_a_factor_of_lr_and_a_missing_fit() -> None:
    x = natural_picture(64, 96, 5)
    step = Resize(kind="resize", down=0, up=1, factor=(1.5, 1.5), of="lr", filters=("bicubic",))
    found, made = degraded(x, (16, 24), (step,), rng())
    width, height = map(int, made.split(";")[0].split()[-1].split("x"))
    assert 24 <= width <= 36 and 16 <= height <= 24
    assert found.shape == (16, 24, 3) and made.endswith("fit bicubic")


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_ends_at_the_size_of_lr_on_odd_pictures(preset: str, scale: int) -> None:
    grid = Grid(scale, 48, 2)
    found = list(views(natural_picture(61, 75, 6), SHA, grid, Chain(preset=preset, views=2)))
    assert all(
        v.tile.lr.shape == (48 // scale, 48 // scale, 3) and v.tile.lr.dtype == np.uint8 for v in found
    )
    assert all(v.made for v in found)


def test_real_esrgan_and_bsrgan_hold_the_ranges_of_their_papers() -> None:
    blur, resize, noise, jpeg, blur2, resize2, noise2, last = steps_of(Chain(preset="realesrgan"), 4)
    assert sum(blur.shapes.values()) == pytest.approx(1) and blur.shapes["sinc"] == 0.1
    assert (blur.sigma, blur2.sigma, blur2.p) == ((0.2, 3.0), (0.2, 1.5), 0.8)
    assert (resize.factor, resize2.factor, resize2.of) == ((0.15, 1.5), (0.3, 1.2), "lr")
    assert (noise.sigma, noise2.sigma, noise.scale, noise2.scale) == (
        (1, 30),
        (1, 25),
        (0.05, 3),
        (0.05, 2.5),
    )
    assert jpeg.quality == (30, 95) and [p.kind for p in last.groups[0]] == ["fit", "blur"]
    assert steps_of(Chain(preset="bsrgan"), 2)[0].groups[0][0].sigma == (0.1, 2.4)
    assert steps_of(Chain(preset="bsrgan"), 4)[0].groups[1][0].sigma == (0.5, 8**0.5)


# --- views


def test_views_line_up_with_their_hr_and_differ_from_each_other() -> None:
    hr = natural_picture(100, 110, 7)
    grid = Grid(2, 48, 2)
    chain = Chain(
        steps=(Fit(kind="fit", filters=("area",)), Noise(kind="noise", sigma=(2, 2))), views=3, seed=5
    )
    found = list(views(hr, SHA, grid, chain))
    corners = positions(100, 110, grid)
    assert [v.id for v in found] == [f"{tile_id(SHA, y, x)}:{n}" for y, x in corners for n in range(3)]
    for v in found:
        assert np.array_equal(v.tile.hr, hr[v.tile.y : v.tile.y + 48, v.tile.x : v.tile.x + 48])
        clean = v.tile.hr.reshape(24, 2, 24, 2, 3).mean((1, 3))
        inside = (clean > 10) & (clean < 245)
        assert (
            abs((v.tile.lr - clean)[inside].std() - 2) < 0.3 and abs((v.tile.lr - clean)[inside].mean()) < 0.3
        )
    assert len({v.tile.lr.tobytes() for v in found}) == len(found)


def test_a_tile_knows_what_lies_beyond_its_border() -> None:
    hr = natural_picture(96, 96, 8)
    steps = (Blur(kind="blur", size=(9, 9), sigma=(2, 2)), Fit(kind="fit", filters=("area",)))
    grid = Grid(2, 48, 0)
    everywhere = whole(hr, SHA, Chain(steps=steps), 2)
    for v in views(hr, SHA, grid, Chain(steps=steps)):
        y, x = v.tile.y // 2, v.tile.x // 2
        assert np.abs(v.tile.lr.astype(int) - everywhere[y : y + 24, x : x + 24]).max() <= 1


def test_more_views_leave_the_first_as_they_are_and_a_seed_changes_all() -> None:
    hr, grid = natural_picture(48, 48, 9), Grid(2, 48, 2)

    def made(**changes: int) -> list[bytes]:
        return [v.tile.lr.tobytes() for v in views(hr, SHA, grid, Chain(preset="realesrgan", **changes))]

    assert made(views=4)[:2] == made(views=2) and not set(made(views=2)) & set(made(views=2, seed=1))


def test_another_process_makes_the_same_views() -> None:
    script = (
        "import hashlib, json; from conftest import natural_picture; from pipeline.data.views import views;"
        "from pipeline.data.tiles import Grid; from pipeline.recipe.degradation import Chain;"
        "print(json.dumps([[v.id, v.made, hashlib.sha256(v.tile.lr.tobytes()).hexdigest()] for n in "
        "('realesrgan', 'bsrgan', 'web', 'video') for v in "
        f"views(natural_picture(60, 70, 1), {SHA!r}, Grid(2, 48, 2), Chain(preset=n, views=2))]))"
    )
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(PYTHONPATH=path, OMP_NUM_THREADS="2", PYTHONHASHSEED="7"),
        capture_output=True,
        text=True,
        check=True,
    )
    here = [
        [v.id, v.made, hashlib.sha256(v.tile.lr.tobytes()).hexdigest()]
        for name in ("realesrgan", "bsrgan", "web", "video")
        for v in views(natural_picture(60, 70, 1), SHA, Grid(2, 48, 2), Chain(preset=name, views=2))
    ]
    assert json.loads(ran.stdout) == here


# --- settings


@pytest.mark.parametrize(
    ("chain", "key"),
    [
        ({"steps": [{"kind": "blur", "sigma": [3, 1]}]}, "steps.0.blur.sigma"),
        ({"steps": [{"kind": "blur", "sigma": [0, 1]}]}, "steps.0.blur.sigma.0"),
        ({"steps": [{"kind": "blur", "size": [8, 8]}]}, "steps.0.blur"),
        ({"steps": [{"kind": "jpeg", "quality": [0, 90]}]}, "steps.0.jpeg.quality.0"),
        ({"steps": [{"kind": "noise", "sigma": [0, 300]}]}, "steps.0.noise.sigma.1"),
        ({"steps": [{"kind": "resize", "up": 1, "factor": [0.2, 0.5]}]}, "steps.0.resize"),
        ({"steps": [{"kind": "fit", "filters": ["cubic"]}]}, "steps.0.fit.filters.0"),
        ({"steps": [{"kind": "fit", "p": 1.5}]}, "steps.0.fit.p"),
        ({"preset": "web", "views": 0}, "views"),
        ({"preset": "web", "steps": [{"kind": "fit"}]}, "chain"),
        ({}, "chain"),
        ({"preset": "esrgan"}, "preset"),
    ],
    ids=str,
)
def test_impossible_chains_are_refused_by_key(chain: dict, key: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(Data, {"train": ["x"], "degradation": chain}, "recipe.yaml")
    where = caught.value.where
    assert where.startswith("recipe.yaml: degradation") and where.endswith(key), where


def test_bicubic_is_said_as_before() -> None:
    assert Data(train=("x",)).model_dump()["degradation"] == "bicubic"
    chain = Data.model_validate({"train": ["x"], "degradation": {"preset": "web", "views": 2}})
    assert Data.model_validate(chain.model_dump(mode="json")) == chain
