"""Enlarging pictures of 16 bits a channel and of inks, with a network that repeats pixels exactly."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import students
from pipeline.data.decode import decode
from pipeline.data.deep import deep_layers, turned
from pipeline.deploy.deep_png import deep_png
from pipeline.deploy.export import save_student
from pipeline.deploy.upscale import upscale_folder
from pipeline.deploy.upscale_pictures import fill_hidden, without_ringing

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
OPTIONS = {"features": 4, "convs": 1}


def deep(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (height, width, channels), np.uint16)


def repeated(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, 0).repeat(2, 1)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A x2 student that repeats pixels."""
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(path, students.build("compact", 2, **OPTIONS), name="compact", scale=2, options=OPTIONS)
    return path


def read(path: Path) -> np.ndarray:
    """(H, W, C) uint16 of a 16-bit PNG file."""
    data = path.read_bytes()
    assert data[24] == 16  # bit depth, in the head
    with Image.open(path) as opened:
        colour, alpha, grey = deep_layers(opened, data)
    colour = colour[:, :, :1] if grey else colour
    return colour if alpha is None else np.dstack((colour, alpha))


@pytest.mark.parametrize("channels", (1, 2, 3, 4))
def test_every_pixel_of_a_deep_png_is_kept(channels: int, student: Path, tmp_path: Path) -> None:
    x = deep(7, 9, channels)
    if channels in (2, 4):
        x[:, :, -1] = 65535 - 10 * np.arange(9)  # transparency that does not ring, and hides nothing
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "a.png").write_bytes(deep_png(x, profile if channels > 2 else None))
    (written,) = upscale_folder(tmp_path / "a.png", tmp_path / "out", student)
    assert np.array_equal(read(written), repeated(x))
    with Image.open(written) as opened:  # Pillow's own reading, of the high bytes
        assert opened.info.get("icc_profile") == (profile if channels > 2 else None)
        if channels == 3:
            assert np.array_equal(np.asarray(opened.convert("RGB")), repeated(x) >> 8)


def with_orientation(png: bytes, orientation: int) -> bytes:
    """A PNG file with an eXIf chunk after its head."""
    exif = Image.Exif()
    exif[274] = orientation
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    return png[:33] + chunk + png[33:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pictures_are_turned_as_shallow_ones_are(
    orientation: int, student: Path, tmp_path: Path
) -> None:
    x = deep(6, 8, 3)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", x, photometric="rgb", extratags=tag)
    (tmp_path / "b.png").write_bytes(with_orientation(deep_png(x), orientation))
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((x >> 8).astype(np.uint8)).save(tmp_path / "c.png", exif=exif)
    found = [upscale_folder(tmp_path / name, tmp_path / name[0], student)[0] for name in ("a.tif", "b.png")]
    (shallow,) = upscale_folder(tmp_path / "c.png", tmp_path / "c", student)
    for written in found:
        assert np.array_equal(read(written), repeated(turned(x, orientation)))
        assert np.array_equal(np.asarray(Image.open(shallow)), read(written) >> 8)


def test_ink_becomes_srgb_and_its_profile_goes(student: Path, tmp_path: Path) -> None:
    ink = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif", icc_profile=b"not a profile")
    (written,) = upscale_folder(tmp_path / "a.tif", tmp_path / "out", student)
    with Image.open(written) as opened:
        assert "icc_profile" not in opened.info and opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), repeated(decode(tmp_path / "a.tif")))


def test_hidden_colours_and_rims_are_the_same_at_any_depth() -> None:
    generator = np.random.default_rng(1)
    colour = generator.integers(0, 256, (8, 8, 3), np.uint8)
    alpha = generator.choice(np.array([0, 255], np.uint8), (8, 8))
    shallow = fill_hidden(colour, alpha)
    large = fill_hidden(colour.astype(np.uint16) * 257, alpha.astype(np.uint16) * 257)
    assert large.dtype == np.uint16 and np.abs(large / 257 - shallow).max() <= 0.51
    rung = generator.integers(0, 65536, (16, 16), np.uint16)
    spot = np.zeros((8, 8), np.uint16)
    spot[0, 0] = 65535
    held = without_ringing(rung, spot, 2)
    assert held.dtype == np.uint16 and np.array_equal(held[:4, :4], rung[:4, :4])
    assert held[:4, :4].any() and not held[4:].any() and not held[:, 4:].any()
    flat = without_ringing(rung, np.full((8, 8), 40000, np.uint16), 2)
    assert (flat == 40000).all()


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize("name", ("grey16.png", "grey16.tif", "planar16.tif", "rgb16.png", "cmyk.jpg"))
def test_the_cases_are_enlarged(name: str, student: Path, tmp_path: Path) -> None:
    (written,) = upscale_folder(CASES / name, tmp_path, student)
    data = written.read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        if name == "cmyk.jpg":
            assert np.array_equal(np.asarray(opened.convert("RGB")), repeated(decode(CASES / name)))
            return
    rounded = np.rint(read(written)[::2, ::2] / 257)
    expected = decode(CASES / name)
    assert np.array_equal(rounded.astype(np.uint8) + np.zeros_like(expected), expected)
