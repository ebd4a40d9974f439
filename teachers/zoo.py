"""Pretrained networks by name: where their authors publish them, and a download that can be trusted.

A download is resumed where it broke off and checked against its sha256. Where the list below knows none, the one
of the first download is written beside the file and enforced from then on.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import InputError
from teachers.checkpoints import file_sha256
from teachers.download import Progress, alone, download


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One published checkpoint."""

    name: str
    url: str
    sha256: str | None
    """Of the checkpoint (of `member` where there is one); None: recorded at the first download."""
    architecture: str
    scale: int
    licence: str
    """As its repository states it; "not stated" where it does not."""
    member: str | None = None
    """The checkpoint's path inside the zip archive at `url`."""
    perceptual: bool = False
    """Trained adversarially."""


def _release(repository: str, tag: str, file: str) -> str:
    return f"https://github.com/{repository}/releases/download/{tag}/{file}"


def _raw(repository: str, path: str) -> str:
    return f"https://github.com/{repository}/raw/HEAD/{path}"


def _swinir() -> Iterator[ZooEntry]:
    known = {
        "swinir-m-x2": "2032ebf8f401dd3ce2fae5f3852117cb72101ec6ed8358faa64c2a3fa09ed4ac",
        "swinir-m-x4": "4e78e33f22c1aa8a773db0cf4a7381bae97c2362c717f155439ebc690cbd9215",
        "swinir-light-x2": "193b229909ca89cd8b55de9c9e7fce146ae759d59dfcd78d8feb9dd1d6fa0fd7",
    }
    files = {
        "swinir-m": "001_classicalSR_DF2K_s64w8_SwinIR-M",
        "swinir-m-div2k": "001_classicalSR_DIV2K_s48w8_SwinIR-M",
        "swinir-light": "002_lightweightSR_DIV2K_s64w8_SwinIR-S",
    }
    for family, file in files.items():
        for scale in (2, 3, 4):
            name = f"{family}-x{scale}"
            url = _release("JingyunLiang/SwinIR", "v0.0", f"{file}_x{scale}.pth")
            yield ZooEntry(name, url, known.get(name), "SwinIR", scale, "Apache-2.0")


def _edsr() -> Iterator[ZooEntry]:
    files = {
        "edsr-baseline-x2": "edsr_baseline_x2-1bc95232.pt",
        "edsr-baseline-x3": "edsr_baseline_x3-abf2a44e.pt",
        "edsr-baseline-x4": "edsr_baseline_x4-6b446fab.pt",
        "edsr-l-x2": "edsr_x2-0edfb8a3.pt",
        "edsr-l-x3": "edsr_x3-ea3ef2c6.pt",
        "edsr-l-x4": "edsr_x4-4f62e9ef.pt",
    }
    for name, file in files.items():
        url = f"https://cv.snu.ac.kr/research/EDSR/models/{file}"
        yield ZooEntry(name, url, None, "EDSR", int(name[-1]), "MIT")


def _rcan() -> Iterator[ZooEntry]:
    url = "https://www.dropbox.com/s/qm9vc0p0w9i4s0n/models_ECCV2018RCAN.zip?dl=1"
    for scale in (2, 3, 4):
        member = f"models_ECCV2018RCAN/RCAN_BIX{scale}.pt"
        yield ZooEntry(f"rcan-x{scale}", url, None, "RCAN", scale, "not stated", member)


def _attention() -> Iterator[ZooEntry]:
    """HAT and DAT, which their authors publish in folders that need a browser: byte copies in a GitHub release."""
    known = {
        "hat-s-x2": ("HAT_S_2x", "3e249a901c2aed6b82548875e21847ef6c015a40c814237a7a0abb10c69d5ddf"),
        "hat-s-x3": ("HAT_S_3x", "3733345caeb2b6cb0a7514d634b143f318e2441faf32316195a47e4cda67669e"),
        "hat-s-x4": ("HAT_S_4x", "a92f81bd2c0c1aaa371a6e4d6cac69e749fde2e36196885ee47a4a3667542c9a"),
        "hat-x2": ("HAT_2x", "35e9409849016ab2bfc0c549639ea4f1d4d5b2bdd75f856a925e124dd05670d0"),
        "hat-x3": ("HAT_3x", "453c90b94d494d041c8bff2d222987af311f07b4a09b4dafbd9ab6492f15206c"),
        "hat-x4": ("HAT_4x", "02dabea478aa5902a7170ad89350124e691bd89c91356f24b3267022622dc030"),
        "dat-s-x2": ("DAT_S_2x", "160330dd8a40b141e12713ca9bfde09e36a03c533b455965f157d023672cb794"),
        "dat-s-x3": ("DAT_S_3x", "d1446d3eb2fbaad472c6fd6c2ac03a3467265c5f93822a741b09838b80f18b62"),
        "dat-s-x4": ("DAT_S_4x", "2ba8a7cbe2fd88f3499d08d1b353fa17a98b815832f4426a7144a0ef9f3bfcf7"),
        "dat-x2": ("DAT_2x", "7760aa96e4ee77e29d4f89c3a4486200042e019461fdb8aa286f49aa00b89b51"),
        "dat-x3": ("DAT_3x", "581973e02c06f90d4eb90acf743ec9604f56f3c2c6f9e1e2c2b38ded1f80d197"),
        "dat-x4": ("DAT_4x", "391a6ce69899dff5ea3214557e9d585608254579217169faf3d4c353caff049e"),
        "dat-light-x2": ("DAT_light_2x", "3888bf067c1a3790adb64210e108690859f4900ffd158fe39a2cfe057ae8300c"),
        "dat-light-x3": ("DAT_light_3x", "dfb99deab865db05771080c73c50a06b67c9499c3a27ca64ab3729fa573d5cfe"),
        "dat-light-x4": ("DAT_light_4x", "e18223fc41500e72e6bd576f2a576eae0818f58fa8cc8646a2233f5faf7d0f74"),
    }
    for name, (file, sha256) in known.items():
        url = _release("TensoRaws/ccrestoration", "model_zoo", f"{file}.pth")
        yield ZooEntry(name, url, sha256, name.split("-")[0].upper(), int(name[-1]), "Apache-2.0")


def _perceptual() -> Iterator[ZooEntry]:
    repository, licence = "xinntao/Real-ESRGAN", "BSD-3-Clause"
    x2 = "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb"
    x4 = "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1"
    general = "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292"
    for name, tag, file, sha256, architecture, scale in (
        ("realesrgan-x2", "v0.2.1", "RealESRGAN_x2plus.pth", x2, "ESRGAN", 2),
        ("realesrgan-x4", "v0.1.0", "RealESRGAN_x4plus.pth", x4, "ESRGAN", 4),
        ("realesrgan-general-x4", "v0.2.5.0", "realesr-general-x4v3.pth", general, "Compact", 4),
    ):
        url = _release(repository, tag, file)
        yield ZooEntry(name, url, sha256, architecture, scale, licence, perceptual=True)


def _small() -> Iterator[ZooEntry]:
    """Light networks whose authors keep the checkpoints in their repositories."""
    carn = _raw("nmhkahn/CARN-pytorch", "checkpoint/carn_m.pth")
    carn_sha256 = "d48a759a84509351facb6b7c6d5bd6edec98b98519b8c464ee4ab44d2ba964ff"
    for scale in (2, 3, 4):
        yield ZooEntry(f"carn-m-x{scale}", carn, carn_sha256, "CARN-M", scale, "MIT")
    for repository, path, architecture, licence, sums in SMALL:
        for scale, sha256 in sums.items():
            url = _raw(repository, path.format(scale))
            yield ZooEntry(f"{architecture.lower()}-x{scale}", url, sha256, architecture, scale, licence)


SMALL: tuple[tuple[str, str, str, str, dict[int, str]], ...] = (
    (
        "Zheng222/IMDN",
        "checkpoints/IMDN_x{}.pth",
        "IMDN",
        "not stated",
        {
            2: "740b39653592bd3f49955a21cd9e16f2d37f2c413368cc09327601b8fbe42ce1",
            3: "11b1716a19bc16e5e353e1db798d476169338e631eb170c82d765559888cb028",
            4: "e660c38221147217a136debeb99eb304d62d9c0f73ac421ed66281b619719714",
        },
    ),
    (
        "zhaohengyuan1/PAN",
        "experiments/pretrained_models/PANx{}_DF2K.pth",
        "PAN",
        "not stated",
        {
            2: "fcf8ed48656abbaae46309ee91745684b80235a9c8b37a2d8fb0715a3ad3f00f",
            3: "86491751d73645a8816a0d6ec62ccde6b22ce5da930e36b3b87f5437167fbc89",
            4: "739fab99ee7b7058dab4d1b84aa2869bb9fc3995a1c08789c20355bee943833c",
        },
    ),
    (
        "xiaom233/BSRN",
        "experiments/pretrained_models/net_g_BSRN_x{}.pth",
        "BSRN",
        "MIT",
        {
            2: "09bd1f85e017c7902e65a9c9770ee592efe3d013f6b5cf1fe7de8cabac4ba37d",
            3: "6eb73a300aaec5029bc0de7f5ae85c02b8dcd8fdaf438c77f90272939fecca7e",
            4: "47518e0f549f5696da0c84ca2d65bf50d789c7ac20e621909f5fd6c8c8d70bcb",
        },
    ),
    (
        "bytedance/RLFN",
        "model_zoo/rlfn_x{}.pth",
        "RLFN",
        "Apache-2.0",
        {
            2: "eafe5d5feeb122022453595c06d79160facdc157ae88deb02a44c50f5eba2d41",
            4: "8c7edb57dfc89048bafba29d591d4c27d4099964b4a9e22df23d6dc257a637c0",
        },
    ),
    (
        "zengkun301/DCTLSA",
        "pretrained/X{}.pt",
        "DCTLSA",
        "Apache-2.0",
        {
            2: "df08c0b6dc0a034c63b6d425586ac3c13ed227db75bb0282b012b4220e943eb9",
            3: "4af9979200d385177ea5284215f144a85cebf5037014af164b1efe5a5beea86d",
            4: "58d822beb3a1bf1d3e5dc91371a5686debda6bdbf246a4484805bda37cb18c06",
        },
    ),
)

ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for family in (_swinir, _edsr, _rcan, _attention, _perceptual, _small)
    for entry in family()
}


def home() -> Path:
    """Where downloads are kept: $FACULTY_TEACHERS, or the user's cache folder."""
    return Path(os.environ.get("FACULTY_TEACHERS") or Path.home() / ".cache" / "faculty" / "teachers")


def fetch(entry: ZooEntry, *, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """The checkpoint's file, downloaded into `folder` (default `home()`) unless it is there already.

    One process downloads, others wait for it. Raises InputError when the bytes are not those of `entry.sha256`
    or of the first download, FacultyError when the address cannot be reached.
    """
    folder = home() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    suffix = Path(entry.member or urlsplit(entry.url).path).suffix
    target = folder / f"{entry.name}{suffix}"
    record = folder / f"{target.name}.sha256"
    with alone(target):
        expected = entry.sha256 or (record.read_text().strip() if record.exists() else None)
        if not target.exists():
            part = folder / f"{target.name}.part"
            download(entry.url, part, progress)
            if entry.member:
                _extract(part, entry.member)
            _compare(part, expected, entry)
            os.replace(part, target)
        digest = _compare(target, expected, entry)
        if expected is None:
            record.write_text(f"{digest}\n")
    return target


def _extract(archive: Path, member: str) -> None:
    """Replaces a zip archive by one of its members. Raises InputError when it is no archive or lacks the member."""
    try:
        with zipfile.ZipFile(archive) as opened:
            content = opened.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        archive.unlink()
        raise InputError(str(archive), f"a zip archive that holds {member}", f"{error}") from None
    archive.write_bytes(content)


def _compare(path: Path, expected: str | None, entry: ZooEntry) -> str:
    digest = file_sha256(path)
    if expected is not None and digest != expected:
        if path.suffix == ".part":
            path.unlink()
        remedy = f"It came from {entry.url}. Remove {path.name} to download it again."
        raise InputError(str(path), f"sha256 {expected}", digest, remedy)
    return digest
