"""A report of a small comparison, and a reader that checks its page."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from pipeline.report.report import Report, Row


def row(name: str, role: str, *psnr: float, other: tuple[float, ...] = (), **options) -> Row:
    scores = {"Set5": {"psnr_y": psnr, "ssim_y": tuple(p / 40 for p in psnr)}}
    if other:
        scores["BSD100"] = {"psnr_y": other}
    return Row(name, role, scores, **options)


ROWS = (
    row(
        "scratch",
        "student",
        36.97,
        36.93,
        36.99,
        other=(31.41, 31.40, 31.42),
        parameters=24683,
        multiply_adds=6 * 10**9,
    ),
    row(
        "mtkd",
        "student",
        37.09,
        37.05,
        37.08,
        other=(31.42, 31.41, 31.41),
        parameters=24683,
        multiply_adds=6 * 10**9,
    ),
    row("bicubic", "bicubic", 33.66, other=(29.56,)),
    row("IMDN", "teacher", 38.00, parameters=694_000, multiply_adds=158_800_000_000),
    row("DCTLSA", "teacher", 38.25, parameters=894_000, multiply_adds=220_000_000_000),
    row("mean", "fused", 38.19),
)
CURVES = {
    "train/loss": {
        "scratch": [(s, 1.0 / (s + 1)) for s in range(2000)],
        "mtkd": [(s, 0.9 / (s + 1)) for s in range(2000)],
    },
    "Set5 PSNR": {"scratch": [(500, 36.0), (1000, 36.97)], "mtkd": [(500, 36.2), (1000, 37.07)]},
}


def report(**changes) -> Report:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    base = Report(
        "demo",
        ROWS,
        summary="Three teachers, one student.",
        baseline="scratch",
        facts={"scale": "x2"},
        recipe="name: demo\nscale: 2\n",
        curves=CURVES,
        pictures=[("butterfly", picture)],
        mlflow="faculty ui runs",
    )
    return replace(base, **changes)


class Reader(HTMLParser):
    """Collects a page's cells, its text and what it would load; checks that tags close."""

    VOID = {"meta", "img", "input", "br", "path", "use", "rect", "link"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.rows, self.text, self.sources = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
