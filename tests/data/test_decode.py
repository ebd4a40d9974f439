"""Pictures as they are decoded: depths, profiles, channels, and what is left out."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import Picture, decode, scan
from pipeline.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def png16(path, channels: int) -> None:
    """A 16-bit PNG of 4x3 pixels, which Pillow itself cannot write."""
    colour = {1: 0, 3: 2, 2: 4, 4: 6}[channels]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(range(4 * channels * 2)) for _ in range(3))
    header = struct.pack(">IIBBBBB", 4, 3, 16, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.tiff"])
def test_rgb_comes_back_exactly(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    result = decode(tmp_path / name)
    assert result.dtype == np.uint8 and result.flags.writeable and np.array_equal(result, RGB)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_formats_decode_to_what_pillow_sees(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    assert np.array_equal(decode(tmp_path / name), np.asarray(Image.open(tmp_path / name).convert("RGB")))


def test_grey_is_replicated(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(GREY).save(tmp_path / name)
        result = decode(tmp_path / name)
        assert result.shape == (12, 17, 3) and np.array_equal(result[:, :, 0], result[:, :, 2])
    assert np.array_equal(decode(tmp_path / "a.png")[:, :, 1], GREY)


def test_palettes_are_resolved(tmp_path):
    few = np.where(RGB > 128, 255, 0).astype(np.uint8)
    Image.fromarray(few).quantize(8).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), few)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_where_opaque_and_laid_on_white_elsewhere(tmp_path, mode):
    opaque = Image.fromarray(RGB).convert(mode)
    opaque.save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), np.asarray(opaque.convert("RGB")))
    opaque.putpixel((3, 4), (*opaque.getpixel((3, 4))[:-1], 254))
    opaque.save(tmp_path / "a.png")
    expected = np.array(opaque.convert("RGB"))
    expected[4, 3] = (expected[4, 3].astype(int) * 254 + 255 + 127) // 255
    assert np.array_equal(decode(tmp_path / "a.png"), expected)


def test_a_transparent_colour_counts_as_alpha(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", transparency=tuple(RGB[5, 5].tolist()))
    assert decode(tmp_path / "a.png")[5, 5].tolist() == [255, 255, 255]
    Image.fromarray(GREY // 2).save(tmp_path / "b.png", transparency=200)  # a key that no pixel has
    assert np.array_equal(decode(tmp_path / "b.png")[:, :, 0], GREY // 2)
    palette = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4), "P")
    palette.putpalette([value for i in range(8) for value in (i, i, i)])
    palette.save(tmp_path / "c.png", transparency=3)
    assert decode(tmp_path / "c.png")[0, 3].tolist() == [255, 255, 255]


def refused(tmp_path, image: Image.Image, name: str, **options) -> str:
    image.save(tmp_path / name, **options)
    with pytest.raises(InputError) as caught:
        decode(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert pickle.loads(pickle.dumps(caught.value)).found == caught.value.found
    assert caught.value.remedy
    return caught.value.found


def test_other_kinds_of_pictures_are_refused_by_kind(tmp_path):
    rgb = Image.fromarray(RGB)
    assert "1-bit" in refused(tmp_path, rgb.convert("1"), "a.png")
    assert "floating" in refused(tmp_path, Image.fromarray(GREY.astype(np.float32)), "c.tif")
    assert "32-bit" in refused(tmp_path, Image.fromarray(GREY.astype(np.int32)), "d.tif")
    assert "Lab" in refused(tmp_path, rgb.convert("LAB"), "e.tif")
    assert "2 frames" in refused(
        tmp_path, rgb, "f.webp", save_all=True, append_images=[Image.new("RGB", (17, 12))]
    )


def test_a_camera_picture_with_a_preview_is_one_picture(tmp_path):
    Image.fromarray(RGB).save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]
    )
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert decode(tmp_path / "a.jpg").shape == RGB.shape


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_rounded_to_8_bits(tmp_path, channels):
    png16(tmp_path / "a.png", channels)
    stored = np.frombuffer(bytes(range(8 * channels)), ">u2").reshape(4, channels).astype(np.float64)
    colours, opaque = stored[:, : 3 if channels > 2 else 1], np.ones((4, 1))
    if channels in (2, 4):
        opaque = np.rint(stored[:, -1:] / 257) / 255
    expected = np.rint(np.rint(colours / 257) * opaque + 255 * (1 - opaque))
    result = decode(tmp_path / "a.png")
    assert np.array_equal(result, np.broadcast_to(expected, (3, 4, 3)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.97])
def test_truncated_files_are_refused(tmp_path, name, part):
    Image.fromarray(np.repeat(np.repeat(RGB, 8, 0), 8, 1)).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="complete picture"):
        decode(tmp_path / name)


def test_a_flipped_byte_in_a_png_is_found(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for position in range(8, len(data) - 12, 7):
        bad = bytearray(data)
        bad[position] ^= 16
        (tmp_path / "a.png").write_bytes(bad)
        with pytest.raises(InputError):
            decode(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
def test_damage_of_any_kind_is_refused_or_harmless(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        bad = bytearray(data)
        for position in random.integers(
            0, min(len(bad), random.choice([64, 200, 10**6])), random.choice([1, 3])
        ):
            bad[position] = random.integers(256)
        (tmp_path / name).write_bytes(bad)
        try:
            assert decode(tmp_path / name).ndim == 3
        except InputError:
            refused += 1
    assert refused > 40


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"<html>404</html>" * 50)
    for path in (tmp_path / "a.png", tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError):
            decode(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    width, height = 40_000, 20_000
    header = struct.pack(
        "<2sIHHIIIIHHIIIIII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0
    )
    (tmp_path / "a.bmp").write_bytes(header)
    with pytest.raises(InputError, match="pixels"):
        decode(tmp_path / "a.bmp")


def make_folder(folder, names: list[str]) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RGB[: 5 + i]).save(folder / name)


def test_scan_lists_pictures_sorted_by_name_with_their_identity(tmp_path):
    make_folder(tmp_path, ["b.png", "sub/a.PNG", "a.png", "sub/deep/c.bmp"])
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    pictures, left_out = scan(tmp_path)
    assert [picture.name for picture in pictures] == ["a.png", "b.png", "sub/a.PNG", "sub/deep/c.bmp"]
    assert left_out == []
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert pictures[0] == Picture("a.png", str(tmp_path / "a.png"), digest, 7, 17)


def test_scan_takes_one_file(tmp_path):
    make_folder(tmp_path, ["a.png", "b.png"])
    assert [picture.name for picture in scan(tmp_path / "b.png")[0]] == ["b.png"]


def test_a_copy_is_left_out_whatever_the_policy(tmp_path):
    make_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    for policy in ("raise", "quarantine"):
        pictures, left_out = scan(tmp_path, on_bad=policy)
        assert [picture.name for picture in pictures] == ["a.png", "b.png"]
        assert [(item.path, item.reason) for item in left_out] == [
            (str(tmp_path / "c.png"), "duplicate of a.png")
        ]


def test_bad_pictures_stop_or_are_left_out_with_their_reason(tmp_path):
    make_folder(tmp_path, ["a.png", "d.png", "e.png"])
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    Image.new("RGB", (1, 1)).save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"b\.png"):
        scan(tmp_path, min_side=4)
    pictures, left_out = scan(tmp_path, min_side=4, on_bad="quarantine")
    assert [picture.name for picture in pictures] == ["a.png", "d.png", "e.png"]
    assert [item.path for item in left_out] == [str(tmp_path / "b.png"), str(tmp_path / "c.png")]
    assert "truncated" in left_out[0].reason.lower() or "complete" in left_out[0].reason
    assert "1x1" in left_out[1].reason and "4 pixels" in left_out[1].reason


def test_nothing_to_work_with_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        scan(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="at least one good picture"):
        scan(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="bad ones alone .1."):
        scan(tmp_path, on_bad="quarantine")


def test_real_pictures_decode(shared):
    pictures, left_out = scan(shared / "data" / "sr" / "train" / "T91")
    assert (len(pictures), [item.reason for item in left_out]) == (90, ["duplicate of t36.png"])
