"""What of a folder is used, what is said of the rest, and files that Pillow reads as something they are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import natural_picture
from PIL import Image

from pipeline.data.decode import decode, survey
from pipeline.data.deep import deep_layers
from pipeline.data.degrade import downscale
from pipeline.deploy.evaluate import announce, bicubic, evaluate, load_set, predict
from pipeline.deploy.upscale_pictures import read_layers
from pipeline.errors import InputError
from pipeline.progress import Quiet


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(natural_picture(40, 44, seed)).save(path)
    return path


def test_a_folder_says_how_it_was_narrowed(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for seed, name in enumerate(("a.png", "b.jfif", "c.gif", "d.jp2", "e.ppm")):
        save(folder / name, seed)
    save(tmp_path / "aside" / "f.png", 9)
    (folder / "linked").symlink_to(tmp_path / "aside")
    (folder / "round").symlink_to(folder)
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "README.txt"):
        (folder / name).write_bytes(b"\0\5\26\7")
    found = survey(folder)
    assert [p.name for p in found.pictures] == ["a.png", "b.jfif", "c.gif", "d.jp2", "e.ppm", "linked/f.png"]
    assert found.line == (
        f"{folder}: 12 files found, 6 used; left out: 1 copies of others, 1 folders linked again, 3 hidden, "
        "1 not pictures"
    )
    tested = survey(folder, keep_copies=True)
    assert len(tested.pictures) == 7 and tested.copies == ["copy.png = a.png"]


def test_a_test_set_counts_every_file(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0), save(tmp_path / "b.png", 1)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    scores = []
    row = evaluate(bicubic(2), [load_set(tmp_path, 2)], 2, on_picture=scores.append)[tmp_path.name]
    a, b, c = (s.psnr_y for s in scores)
    assert a == c and row["psnr_y"] == pytest.approx((2 * a + b) / 3)


def test_grey_files_are_measured_as_they_are(tmp_path: Path) -> None:
    grey = natural_picture(40, 44, 3)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    hr = np.repeat(grey[:, :, None], 3, 2)
    sr = predict(bicubic(2), downscale(hr, 2), 2)[:, :, 0].astype(float)
    error = np.mean((sr - grey)[2:-2, 2:-2] ** 2)
    row = evaluate(bicubic(2), [load_set(tmp_path, 2)], 2)[tmp_path.name]
    assert row["psnr_y"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-9)


@pytest.mark.parametrize("read", [decode, read_layers])
def test_sixteen_bits_are_told_in_every_format(tmp_path: Path, read) -> None:
    ppm = tmp_path / "a.ppm"
    ppm.write_bytes(b"P6 4 3 65535\n" + bytes(range(72)))
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 4 3 65535\n" + bytes(range(24)))
    jp2 = tmp_path / "a.jp2"
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(jp2)
    for path in (ppm, pgm, jp2):
        with pytest.raises(InputError, match="16 bits a channel"):
            read(path)


@pytest.mark.parametrize("read", [decode, read_layers])
def test_5_6_5_bmp_is_a_picture(tmp_path: Path, read) -> None:
    masks = b"".join(m.to_bytes(4, "little") for m in (0xF800, 0x07E0, 0x001F))
    info = b"".join(
        v.to_bytes(n, "little")
        for v, n in [(40, 4), (2, 4), (1, 4), (1, 2), (16, 2), (3, 4), (4, 4), (0, 4), (0, 4), (0, 4), (0, 4)]
    )
    head = b"BM" + (70).to_bytes(4, "little") + bytes(4) + (66).to_bytes(4, "little")
    (tmp_path / "a.bmp").write_bytes(head + info + masks + bytes([0x00, 0xF8, 0x1F, 0x00]))
    found = read(tmp_path / "a.bmp")
    pixels = found if isinstance(found, np.ndarray) else found.colour
    assert pixels.tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("read", [decode, read_layers])
def test_damage_is_named_and_no_address_is_shown(tmp_path: Path, shared: Path, read) -> None:
    (tmp_path / "a.png").write_bytes(b"\0\5\26\7")
    for path in (tmp_path / "a.png", shared / "cases" / "damaged_no_width.tif"):
        with pytest.raises(InputError) as caught:
            read(path)
        assert path.name in str(caught.value) and " 0x" not in str(caught.value)


def test_a_name_that_is_not_utf_8_can_be_shown() -> None:
    reporter = Quiet()
    name = os.fsdecode(b"caf\xe9.png")
    reporter.warn(name)
    text = reporter.warnings[0] + str(InputError(name, "a picture", "none"))
    assert text.encode() and r"caf\xe9.png" in text


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", [{}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_16_bit_tiff_is_read_at_full_depth(tmp_path: Path, order: str, layout: dict, planes: str) -> None:
    x = np.random.default_rng(0).integers(0, 65536, (21, 37, 3), np.uint16)
    pages = x if planes == "contig" else x.transpose(2, 0, 1).copy()
    tifffile.imwrite(
        tmp_path / "a.tif", pages, byteorder=order, photometric="rgb", planarconfig=planes, **layout
    )
    data = (tmp_path / "a.tif").read_bytes()
    with Image.open(tmp_path / "a.tif") as picture:
        colour, alpha, grey = deep_layers(picture, data)
    assert np.array_equal(colour, x) and alpha is None and not grey
    assert np.array_equal(decode(tmp_path / "a.tif"), np.rint(x / 257))


def test_the_16_bit_cases_are_exact(shared: Path) -> None:
    cases = shared / "cases"
    for name in ("planar16.tif", "grey16.tif"):
        stored = tifffile.imread(cases / name)
        stored = stored.transpose(1, 2, 0) if stored.ndim == 3 else stored[:, :, None].repeat(3, 2)
        assert np.array_equal(decode(cases / name) * np.uint16(257), stored)
    assert np.array_equal(decode(cases / "grey16.png"), decode(cases / "grey16.tif"))


def test_pictures_of_other_kinds_are_said_once_a_folder(tmp_path: Path) -> None:
    for seed in (1, 2):
        rgb = Image.fromarray(natural_picture(40, 44, seed))
        rgb.convert("CMYK").save(tmp_path / f"{seed}.jpg")
        tifffile.imwrite(tmp_path / f"{seed}.tif", np.asarray(rgb).astype(np.uint16) * 257, photometric="rgb")
    found, reporter = survey(tmp_path), Quiet()
    announce(found, reporter)
    said = "2 16-bit rounded to 8 bits, 2 CMYK converted to RGB"
    assert reporter.warnings == [f"{tmp_path}: pictures of other kinds: {said}"]
