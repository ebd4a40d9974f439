"""Pretrained networks that are published, by name: where, under which terms, and what their bytes are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One published checkpoint."""

    name: str
    url: str
    sha256: str | None
    """Of the checkpoint (of `member` where there is one); None: recorded at the first download."""
    architecture: str
    scale: int
    parameters: int
    licence: str
    """As its repository states it; "not stated" where it does not."""
    member: str | None = None
    """The checkpoint's path inside the zip archive at `url`."""
    perceptual: bool = False
    """Trained adversarially."""


def _raw(repository: str, path: str) -> str:
    return f"https://github.com/{repository}/raw/HEAD/{path}"


Row = tuple[str, str, "str | None", int]
"""Name (it ends in the scale), file, sha256 where known, parameters."""

SWINIR: tuple[Row, ...] = (
    (
        "swinir-m-x2",
        "001_classicalSR_DF2K_s64w8_SwinIR-M_x2",
        "2032ebf8f401dd3ce2fae5f3852117cb72101ec6ed8358faa64c2a3fa09ed4ac",
        11_752_487,
    ),
    ("swinir-m-x3", "001_classicalSR_DF2K_s64w8_SwinIR-M_x3", None, 11_937_127),
    (
        "swinir-m-x4",
        "001_classicalSR_DF2K_s64w8_SwinIR-M_x4",
        "4e78e33f22c1aa8a773db0cf4a7381bae97c2362c717f155439ebc690cbd9215",
        11_900_199,
    ),
    ("swinir-m-div2k-x2", "001_classicalSR_DIV2K_s48w8_SwinIR-M_x2", None, 11_752_487),
    ("swinir-m-div2k-x3", "001_classicalSR_DIV2K_s48w8_SwinIR-M_x3", None, 11_937_127),
    ("swinir-m-div2k-x4", "001_classicalSR_DIV2K_s48w8_SwinIR-M_x4", None, 11_900_199),
    (
        "swinir-light-x2",
        "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x2",
        "193b229909ca89cd8b55de9c9e7fce146ae759d59dfcd78d8feb9dd1d6fa0fd7",
        910_152,
    ),
    ("swinir-light-x3", "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x3", None, 918_267),
    ("swinir-light-x4", "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4", None, 929_628),
)
EDSR: tuple[Row, ...] = (
    ("edsr-baseline-x2", "edsr_baseline_x2-1bc95232", None, 1_369_883),
    ("edsr-baseline-x3", "edsr_baseline_x3-abf2a44e", None, 1_554_523),
    ("edsr-baseline-x4", "edsr_baseline_x4-6b446fab", None, 1_517_595),
    ("edsr-l-x2", "edsr_x2-0edfb8a3", None, 40_729_627),
    ("edsr-l-x3", "edsr_x3-ea3ef2c6", None, 43_680_027),
    ("edsr-l-x4", "edsr_x4-4f62e9ef", None, 43_089_947),
)
RCAN: tuple[Row, ...] = (
    ("rcan-x2", "RCAN_BIX2", None, 15_444_667),
    ("rcan-x3", "RCAN_BIX3", None, 15_629_307),
    ("rcan-x4", "RCAN_BIX4", None, 15_592_379),
)
# Their authors publish these in folders that need a browser: byte copies in a GitHub release.
HAT: tuple[Row, ...] = (
    ("hat-s-x2", "HAT_S_2x", "3e249a901c2aed6b82548875e21847ef6c015a40c814237a7a0abb10c69d5ddf", 9_473_471),
    ("hat-s-x3", "HAT_S_3x", "3733345caeb2b6cb0a7514d634b143f318e2441faf32316195a47e4cda67669e", 9_658_111),
    ("hat-s-x4", "HAT_S_4x", "a92f81bd2c0c1aaa371a6e4d6cac69e749fde2e36196885ee47a4a3667542c9a", 9_621_183),
    ("hat-x2", "HAT_2x", "35e9409849016ab2bfc0c549639ea4f1d4d5b2bdd75f856a925e124dd05670d0", 20_624_795),
    ("hat-x3", "HAT_3x", "453c90b94d494d041c8bff2d222987af311f07b4a09b4dafbd9ab6492f15206c", 20_809_435),
    ("hat-x4", "HAT_4x", "02dabea478aa5902a7170ad89350124e691bd89c91356f24b3267022622dc030", 20_772_507),
)
DAT: tuple[Row, ...] = (
    ("dat-s-x2", "DAT_S_2x", "160330dd8a40b141e12713ca9bfde09e36a03c533b455965f157d023672cb794", 11_064_419),
    ("dat-s-x3", "DAT_S_3x", "d1446d3eb2fbaad472c6fd6c2ac03a3467265c5f93822a741b09838b80f18b62", 11_249_059),
    ("dat-s-x4", "DAT_S_4x", "2ba8a7cbe2fd88f3499d08d1b353fa17a98b815832f4426a7144a0ef9f3bfcf7", 11_212_131),
    ("dat-x2", "DAT_2x", "7760aa96e4ee77e29d4f89c3a4486200042e019461fdb8aa286f49aa00b89b51", 14_654_339),
    ("dat-x3", "DAT_3x", "581973e02c06f90d4eb90acf743ec9604f56f3c2c6f9e1e2c2b38ded1f80d197", 14_838_979),
    ("dat-x4", "DAT_4x", "391a6ce69899dff5ea3214557e9d585608254579217169faf3d4c353caff049e", 14_802_051),
    (
        "dat-light-x2",
        "DAT_light_2x",
        "3888bf067c1a3790adb64210e108690859f4900ffd158fe39a2cfe057ae8300c",
        553_290,
    ),
    (
        "dat-light-x3",
        "DAT_light_3x",
        "dfb99deab865db05771080c73c50a06b67c9499c3a27ca64ab3729fa573d5cfe",
        561_405,
    ),
    (
        "dat-light-x4",
        "DAT_light_4x",
        "e18223fc41500e72e6bd576f2a576eae0818f58fa8cc8646a2233f5faf7d0f74",
        572_766,
    ),
)
REAL_ESRGAN: tuple[Row, ...] = (
    (
        "realesrgan-x2",
        "v0.2.1/RealESRGAN_x2plus",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        16_703_171,
    ),
    (
        "realesrgan-x4",
        "v0.1.0/RealESRGAN_x4plus",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        16_697_987,
    ),
    (
        "realesrgan-general-x4",
        "v0.2.5.0/realesr-general-x4v3",
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        1_213_296,
    ),
)
# Light networks whose authors keep the checkpoints in their repositories.
CARN_M: tuple[Row, ...] = (
    (
        "carn-m-x2",
        "checkpoint/carn_m.pth",
        "d48a759a84509351facb6b7c6d5bd6edec98b98519b8c464ee4ab44d2ba964ff",
        414_811,
    ),
    (
        "carn-m-x3",
        "checkpoint/carn_m.pth",
        "d48a759a84509351facb6b7c6d5bd6edec98b98519b8c464ee4ab44d2ba964ff",
        414_811,
    ),
    (
        "carn-m-x4",
        "checkpoint/carn_m.pth",
        "d48a759a84509351facb6b7c6d5bd6edec98b98519b8c464ee4ab44d2ba964ff",
        414_811,
    ),
)
IMDN: tuple[Row, ...] = (
    (
        "imdn-x2",
        "checkpoints/IMDN_x2.pth",
        "740b39653592bd3f49955a21cd9e16f2d37f2c413368cc09327601b8fbe42ce1",
        694_404,
    ),
    (
        "imdn-x3",
        "checkpoints/IMDN_x3.pth",
        "11b1716a19bc16e5e353e1db798d476169338e631eb170c82d765559888cb028",
        703_059,
    ),
    (
        "imdn-x4",
        "checkpoints/IMDN_x4.pth",
        "e660c38221147217a136debeb99eb304d62d9c0f73ac421ed66281b619719714",
        715_176,
    ),
)
PAN: tuple[Row, ...] = (
    ("pan-x2", "PANx2_DF2K.pth", "fcf8ed48656abbaae46309ee91745684b80235a9c8b37a2d8fb0715a3ad3f00f", 261_403),
    ("pan-x3", "PANx3_DF2K.pth", "86491751d73645a8816a0d6ec62ccde6b22ce5da930e36b3b87f5437167fbc89", 261_403),
    ("pan-x4", "PANx4_DF2K.pth", "739fab99ee7b7058dab4d1b84aa2869bb9fc3995a1c08789c20355bee943833c", 272_419),
)
BSRN: tuple[Row, ...] = (
    (
        "bsrn-x2",
        "net_g_BSRN_x2.pth",
        "09bd1f85e017c7902e65a9c9770ee592efe3d013f6b5cf1fe7de8cabac4ba37d",
        331_628,
    ),
    (
        "bsrn-x3",
        "net_g_BSRN_x3.pth",
        "6eb73a300aaec5029bc0de7f5ae85c02b8dcd8fdaf438c77f90272939fecca7e",
        340_283,
    ),
    (
        "bsrn-x4",
        "net_g_BSRN_x4.pth",
        "47518e0f549f5696da0c84ca2d65bf50d789c7ac20e621909f5fd6c8c8d70bcb",
        352_400,
    ),
)
RLFN: tuple[Row, ...] = (
    (
        "rlfn-x2",
        "model_zoo/rlfn_x2.pth",
        "eafe5d5feeb122022453595c06d79160facdc157ae88deb02a44c50f5eba2d41",
        526_856,
    ),
    (
        "rlfn-x4",
        "model_zoo/rlfn_x4.pth",
        "8c7edb57dfc89048bafba29d591d4c27d4099964b4a9e22df23d6dc257a637c0",
        543_740,
    ),
)
DCTLSA: tuple[Row, ...] = (
    (
        "dctlsa-x2",
        "pretrained/X2.pt",
        "df08c0b6dc0a034c63b6d425586ac3c13ed227db75bb0282b012b4220e943eb9",
        867_472,
    ),
    (
        "dctlsa-x3",
        "pretrained/X3.pt",
        "4af9979200d385177ea5284215f144a85cebf5037014af164b1efe5a5beea86d",
        874_912,
    ),
    (
        "dctlsa-x4",
        "pretrained/X4.pt",
        "58d822beb3a1bf1d3e5dc91371a5686debda6bdbf246a4484805bda37cb18c06",
        885_328,
    ),
)


def _entries() -> Iterator[ZooEntry]:
    def family(
        rows: tuple[Row, ...], architecture: str, licence: str, url: Callable[[str], str], **more: Any
    ) -> Iterator[ZooEntry]:
        for name, file, sha256, parameters in rows:
            yield ZooEntry(name, url(file), sha256, architecture, int(name[-1]), parameters, licence, **more)

    apache, mit, bsd, unknown = "Apache-2.0", "MIT", "BSD-3-Clause", "not stated"
    swinir = "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/{}.pth"
    yield from family(SWINIR, "SwinIR", apache, swinir.format)
    yield from family(EDSR, "EDSR", mit, "https://cv.snu.ac.kr/research/EDSR/models/{}.pt".format)
    archive = "https://www.dropbox.com/s/qm9vc0p0w9i4s0n/models_ECCV2018RCAN.zip?dl=1"
    for row in RCAN:
        member = f"models_ECCV2018RCAN/{row[1]}.pt"
        yield from family((row,), "RCAN", unknown, lambda f: archive, member=member)
    copies = "https://github.com/TensoRaws/ccrestoration/releases/download/model_zoo/{}.pth"
    yield from family(HAT, "HAT", apache, copies.format)
    yield from family(DAT, "DAT", apache, copies.format)
    real = "https://github.com/xinntao/Real-ESRGAN/releases/download/{}.pth"
    yield from family(REAL_ESRGAN[:2], "ESRGAN", bsd, real.format, perceptual=True)
    yield from family(REAL_ESRGAN[2:], "Compact", bsd, real.format, perceptual=True)
    yield from family(CARN_M, "CARN-M", mit, lambda f: _raw("nmhkahn/CARN-pytorch", f))
    yield from family(IMDN, "IMDN", unknown, lambda f: _raw("Zheng222/IMDN", f))
    pretrained = "experiments/pretrained_models"
    yield from family(PAN, "PAN", unknown, lambda f: _raw("zhaohengyuan1/PAN", f"{pretrained}/{f}"))
    yield from family(BSRN, "BSRN", mit, lambda f: _raw("xiaom233/BSRN", f"{pretrained}/{f}"))
    yield from family(RLFN, "RLFN", apache, lambda f: _raw("bytedance/RLFN", f))
    yield from family(DCTLSA, "DCTLSA", apache, lambda f: _raw("zengkun301/DCTLSA", f))


ENTRIES: tuple[ZooEntry, ...] = tuple(_entries())
