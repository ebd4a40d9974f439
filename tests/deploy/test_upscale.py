"""Enlarging pictures of every kind. A fresh Compact repeats pixels exactly, so results are known to the bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import students
from pipeline.deploy.export import export_onnx, export_pth, save_student
from pipeline.deploy.upscale import open_network, upscale_folder
from pipeline.errors import InputError

OPTIONS = {"features": 4, "convs": 1}


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def repeated(x: np.ndarray, times: int = 2) -> np.ndarray:
    return x.repeat(times, 0).repeat(times, 1)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A x2 student that repeats pixels."""
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(path, students.build("compact", 2, **OPTIONS), name="compact", scale=2, options=OPTIONS)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def one(path: Path, student: Path, tmp_path: Path) -> Image.Image:
    """The result for one picture file, opened."""
    (written,) = upscale_folder(path, tmp_path / "out", student)
    result = Image.open(written)
    result.load()
    return result


def test_a_folder_keeps_its_shape(source: Path, student: Path, tmp_path: Path) -> None:
    (source / "deep" / "er").mkdir(parents=True)
    a, b = picture(5, 7), picture(9, 4, seed=1)
    Image.fromarray(a).save(source / "a.png")
    Image.fromarray(b).save(source / "deep" / "er" / "b.bmp")
    (source / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    seen: list[tuple[int, int, Path]] = []
    written = upscale_folder(source, out, student, on_picture=lambda *told: seen.append(told))
    assert written == [out / "a.png", out / "deep" / "er" / "b.png"]
    assert np.array_equal(np.array(Image.open(written[0])), repeated(a))
    assert np.array_equal(np.array(Image.open(written[1])), repeated(b))
    assert seen == [(1, 2, source / "a.png"), (2, 2, source / "deep" / "er" / "b.bmp")]
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["a.png", "b.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_tiny_pictures(size: tuple[int, int], source: Path, student: Path, tmp_path: Path) -> None:
    x = picture(*size)
    Image.fromarray(x).save(source / "x.png")
    assert np.array_equal(np.array(one(source / "x.png", student, tmp_path)), repeated(x))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_colour_model_is_kept(mode: str, source: Path, student: Path, tmp_path: Path) -> None:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    x = picture(6, 5, channels)
    if mode in ("LA", "RGBA"):
        x[..., -1] |= 1  # nothing fully hidden: then every colour counts
    Image.frombytes(mode, (5, 6), x.tobytes()).save(source / "x.png")
    result = one(source / "x.png", student, tmp_path)
    assert result.mode == mode
    assert np.array_equal(np.array(result), repeated(x))


def test_black_and_white_becomes_grey(source: Path, student: Path, tmp_path: Path) -> None:
    x = picture(6, 5, 1) > 127
    Image.fromarray(x).save(source / "x.png")
    result = one(source / "x.png", student, tmp_path)
    assert result.mode == "L"
    assert np.array_equal(np.array(result), repeated(x) * np.uint8(255))


def test_palettes_are_resolved(source: Path, student: Path, tmp_path: Path) -> None:
    plain = Image.fromarray(picture(6, 5)).quantize(7)
    plain.save(source / "plain.png")
    clear = plain.copy()
    clear.save(source / "clear.png", transparency=0)
    expected = np.array(plain.convert("RGB"))
    assert np.array_equal(np.array(one(source / "plain.png", student, tmp_path)), repeated(expected))
    result = one(source / "clear.png", student, tmp_path)
    assert result.mode == "RGBA"
    visible = np.array(plain) != 0
    assert np.array_equal(np.array(result)[..., 3] > 127, repeated(visible))
    assert np.array_equal(np.array(result)[..., :3][repeated(visible)], repeated(expected)[repeated(visible)])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied_once(
    orientation: int, source: Path, student: Path, tmp_path: Path
) -> None:
    x = picture(6, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(x).save(source / "x.png", exif=exif)
    result = one(source / "x.png", student, tmp_path)
    upright = np.rot90(x, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert np.array_equal(np.array(result), repeated(upright))
    assert result.getexif().get(0x0112, 1) == 1


def test_the_colour_profile_is_kept(source: Path, student: Path, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture(4, 4)).save(source / "x.png", icc_profile=profile)
    assert one(source / "x.png", student, tmp_path).info["icc_profile"] == profile


def test_every_kind_of_file_gives_the_same_picture(student: Path, source: Path, tmp_path: Path) -> None:
    x = picture(6, 7)
    Image.fromarray(x).save(source / "x.png")
    model = students.build("compact", 2, **OPTIONS)
    export_onnx(model, tmp_path / "s.onnx", 2)
    export_pth(model, tmp_path / "s.pth")
    for path in (student, tmp_path / "s.onnx", tmp_path / "s.pth"):
        (written,) = upscale_folder(source, tmp_path / path.suffix[1:], path)
        assert np.array_equal(np.array(Image.open(written)), repeated(x)), path


def test_networks_that_cannot_be_opened_are_named(source: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(4, 4)).save(source / "x.png")
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"not a graph")
    for path in (junk, tmp_path / "none.onnx", tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match=path.name):
            upscale_folder(source, tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


def bad_pictures(folder: Path) -> dict[str, str]:
    """Files that cannot be enlarged, with a word that the message must have."""
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 40)).save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[:-200])
    (folder / "text.png").write_text("no picture")
    Image.fromarray(np.ones((4, 4), np.int32)).save(folder / "deep.tif")
    Image.new("LAB", (4, 4)).save(folder / "print.tif")
    frames = [Image.fromarray(picture(4, 4, seed=seed)) for seed in (1, 2)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    return {
        "cut.jpg": "truncated",
        "text.png": "that no picture format begins",
        "deep.tif": "I colours",
        "print.tif": "LAB colours",
        "moving.webp": "2 frames",
    }


def test_bad_pictures_are_named_and_do_not_stop_the_others(
    source: Path, student: Path, tmp_path: Path
) -> None:
    bad = bad_pictures(source)
    x = picture(4, 5)
    Image.fromarray(x).save(source / "zebra.png")
    with pytest.raises(
        InputError, match=r"6 readable pictures, found 5 unreadable .*cut\.jpg.* other 1 are done"
    ):
        upscale_folder(source, tmp_path / "out", student)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["zebra.png"]
    for name, told in bad.items():
        with pytest.raises(InputError, match=told) as caught:
            upscale_folder(source / name, tmp_path / "alone", student)
        assert name in str(caught.value)


def test_an_input_is_never_replaced(source: Path, student: Path, tmp_path: Path) -> None:
    x = source / "x.png"
    Image.fromarray(picture(4, 4)).save(x)
    before = x.read_bytes()
    with pytest.raises(InputError, match="the folder of the pictures itself"):
        upscale_folder(source, source, student)
    with pytest.raises(InputError, match="would replace the input"):
        upscale_folder(x, source, student)
    with pytest.raises(InputError, match="would replace the input"):
        upscale_folder(x, x, student)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "x.png").symlink_to(x)
    with pytest.raises(InputError, match="would replace the input"):
        upscale_folder(source, linked, student)
    assert x.read_bytes() == before


def test_results_inside_the_source_are_no_input(source: Path, student: Path) -> None:
    Image.fromarray(picture(4, 4)).save(source / "x.png")
    out = source / "large"
    first = upscale_folder(source, out, student)
    assert upscale_folder(source, out, student) == first == [out / "x.png"]
    assert Image.open(out / "x.png").size == (8, 8)


def test_results_may_lie_above_the_source(source: Path, student: Path) -> None:
    Image.fromarray(picture(4, 4)).save(source / "x.png")
    assert upscale_folder(source, source.parent, student) == [source.parent / "x.png"]
    assert Image.open(source / "x.png").size == (4, 4)


def test_inputs_of_one_name_keep_their_suffix(source: Path, student: Path, tmp_path: Path) -> None:
    for name in ("a.png", "A.bmp", "b.png"):
        Image.fromarray(picture(3, 3)).save(source / name)
    written = upscale_folder(source, tmp_path / "out", student)
    assert sorted(p.name for p in written) == ["A.bmp.png", "a.png.png", "b.png"]
    Image.fromarray(picture(3, 3)).save(source / "a.png.png")
    with pytest.raises(InputError, match=r"2 inputs for a\.png\.png"):
        upscale_folder(source, tmp_path / "out", student)


def test_one_file_may_name_its_result(source: Path, student: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(3, 4)).save(source / "x.jpg")
    assert upscale_folder(source / "x.jpg", tmp_path / "new" / "big.png", student) == [
        tmp_path / "new" / "big.png"
    ]
    assert upscale_folder(source / "x.jpg", source, student) == [
        source / "x.png"
    ]  # beside its source, no clash
    assert Image.open(tmp_path / "new" / "big.png").size == (8, 6)


@pytest.mark.parametrize("tile", [0, 32])
def test_a_tile_smaller_than_its_overlaps_is_refused(
    tile: int, source: Path, student: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="more than twice the overlap of 16"):
        upscale_folder(source, tmp_path / "out", student, tile=tile)


def test_nothing_to_do_is_said(source: Path, student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one picture"):
        upscale_folder(source, tmp_path / "out", student)
    with pytest.raises(InputError, match="nothing there"):
        upscale_folder(tmp_path / "nowhere", tmp_path / "out", student)


def test_a_run_again_replaces_its_own_results(source: Path, student: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(3, 3)).save(source / "x.png")
    (written,) = upscale_folder(source, tmp_path / "out", student)
    written.write_bytes(b"half a pict")
    upscale_folder(source, tmp_path / "out", student)
    assert Image.open(written).size == (6, 6)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.png"]


def test_open_network_tells_the_scale(student: Path) -> None:
    network, scale = open_network(student)
    assert scale == 2
    assert network(torch.rand(1, 3, 4, 5)).shape == (1, 3, 8, 10)
