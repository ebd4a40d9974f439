"""The report and its table: the right figures, marks that can be trusted, pages that stand alone."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.report.charts import binned, curves, ladder
from pipeline.report.extra import Extra
from pipeline.report.pareto import cost, latency
from pipeline.report.report import File, Metric, Report, Row, render_table, write_report
from pipeline.report.table import PSNR, SSIM, arrange, gains, short, spread


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


# The table


def test_counts_are_short_with_three_figures():
    assert [short(n) for n in (0, 7, 999, 1000, 24683, 999_999, 1_335_603)] == [
        "0", "7", "999", "1.00 k", "24.7 k", "1.00 M", "1.34 M",
    ]  # fmt: skip
    assert short(158_800_000_000) == "159 G"
    assert short(None) == "-"


def test_spread_is_the_sample_deviation_and_one_seed_has_none():
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert spread([1.0]) is None


def test_columns_are_aligned_whatever_is_missing():
    text = render_table(ROWS, baseline="scratch")
    lines = text.splitlines()
    assert lines[0].split() == ["Set5", "BSD100"]
    assert lines[1].split() == ["method", "parameters", "mult-adds", "PSNR", "SSIM", "PSNR"]
    figures = [m.start() for line in lines for m in re.finditer(r"3[3-8]\.\d\d", line)]
    assert len(figures) == 6 and len(set(figures)) == 1  # every Set5 PSNR starts in one column
    others = {m.start() for line in lines for m in re.finditer(r"\b(29|31)\.\d\d", line)}
    assert len(others) == 1
    assert "\x1b" not in text


def test_rows_come_in_order_of_role_with_mean_and_spread():
    lines = render_table(ROWS).splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ") and "." in line]
    assert names == ["bicubic", "IMDN", "DCTLSA", "mean", "scratch", "mtkd"]
    scratch = next(line for line in lines if "scratch" in line)
    assert "36.96 \N{PLUS-MINUS SIGN}0.03" in scratch and "24.7 k" in scratch and "6.00 G" in scratch


def test_bold_is_for_the_best_of_each_role_and_for_terminals_only():
    bold = re.findall(r"\x1b\[1m *([\d.]+)", render_table(ROWS, colour=True))
    assert bold[:1] == ["38.25"]  # DCTLSA among teachers; bicubic and mean have no rival
    assert "37.07" in bold and "36.96" not in bold and "33.66" not in bold and "38.19" not in bold


def test_equal_as_printed_is_equally_good_and_lower_may_be_better():
    ties = [row("a", "student", 37.001), row("b", "student", 37.004), row("c", "student", 36.9)]
    assert [cells[0].best for cells in arrange(ties).cells] == [True, True, False]
    error = Metric("error", "error", 3, higher_is_better=False)
    rows = [Row(n, "student", {"faces": {"error": [v]}}) for n, v in (("a", 0.2), ("b", 0.1))]
    assert [cells[0].best for cells in arrange(rows, [error]).cells] == [False, True]


def test_gains_say_whether_seeds_differ_as_much():
    (sentence,) = gains(ROWS, PSNR, "scratch")
    assert "Set5 +0.11 dB (beyond the spread of 0.03 between seeds)" in sentence
    assert "BSD100 +0.00 dB (within the spread of 0.01 between seeds)" in sentence
    assert gains(ROWS, PSNR, None) == []
    single = [row("scratch", "student", 36.0), row("kd", "student", 36.5)]
    assert gains(single, PSNR, "scratch") == ["kd against scratch: Set5 +0.50 dB (one seed)."]


def test_a_table_without_costs_or_figures_still_prints():
    bare = render_table([Row("a", "student", {"Set5": {"psnr_y": [30.0]}}), Row("b", "student", {})])
    assert "parameters" not in bare
    assert bare.splitlines()[-1].split() == ["b", "-"]


# The files


def test_the_page_stands_alone_and_shows_every_figure(tmp_path):
    _, web = write_report(tmp_path, report())
    text = web.read_text()
    page = Reader(text)
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in page.sources)
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    cells = {line[0]: line for line in page.rows if line}
    assert cells["scratch"][1:5] == ["24.7 k", "6.00 G", "36.96", "\N{PLUS-MINUS SIGN}0.03"]
    assert "+0.11" in cells["mtkd"]
    assert cells["bicubic"][3] == "33.66"
    everything = " ".join(page.text)
    for expected in (
        "Three teachers, one student.",
        "faculty ui runs",
        "name: demo",
        "butterfly",
        "+3.41 dB",
    ):
        assert expected in everything
    assert text.count("<svg") == 5 and text.count("</svg>") == 5  # two ladders, one cost, two curves


def test_the_picture_in_the_page_is_the_picture(tmp_path):
    given = report()
    _, web = write_report(tmp_path, given)
    data = re.search(r'src="data:image/png;base64,([^"]+)"', web.read_text())[1]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), given.pictures[0][1])


def test_the_markdown_links_to_files_that_exist(tmp_path):
    (tmp_path / "student.safetensors").write_bytes(b"0" * 2048)
    files = [File("student", str(tmp_path / "student.safetensors")), File("store", "s3://bucket/x")]
    markdown, web = write_report(tmp_path, report(files=files))
    text = markdown.read_text()
    links = [link.strip("<>") for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert "student.safetensors" in links
    for link in links:
        assert "://" in link or (tmp_path / link).is_file(), link
    assert "| mtkd | 24.7 k | 6.00 G | **37.07 \N{PLUS-MINUS SIGN}0.02** |" in text
    assert "2.05 kB" in web.read_text()
    assert not [p for p in tmp_path.rglob("*.tmp")]


def test_names_from_users_are_text_not_markup(tmp_path):
    evil = "<script>alert(1)</script>|x"
    rows = [*ROWS, row(evil, "student", 36.0)]
    lines = {evil: {evil: [(1, 1.0), (2, 2.0)]}}
    pictures = [(f'"{evil}', np.zeros((4, 4, 3), np.uint8))]
    markdown, web = write_report(
        tmp_path,
        report(
            title=evil,
            rows=rows,
            warnings=[evil],
            facts={evil: evil},
            recipe=evil,
            curves=lines,
            pictures=pictures,
        ),
    )
    assert "<script>alert" not in web.read_text()
    Reader(web.read_text())
    table = [line for line in markdown.read_text().splitlines() if line.startswith("| \\<script")]
    assert len(table) == 1 and len(re.findall(r"(?<!\\)\|", table[0])) == 7
    for svg in (tmp_path / "report").glob("*.svg"):
        ElementTree.fromstring(svg.read_text())


def test_warnings_stand_before_the_table(tmp_path):
    markdown, web = write_report(tmp_path, report(warnings=["fused target below the best teacher"]))
    for text in (markdown.read_text(), web.read_text()):
        assert text.index("fused target below") < text.index("DCTLSA")


def test_a_report_may_hold_a_table_only(tmp_path):
    _, web = write_report(tmp_path, Report("bare", ROWS[:1]))
    page = Reader(web.read_text())
    assert "Pictures" not in page.text and "Recipe" not in page.text


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first = [p.read_bytes() for p in write_report(tmp_path / "a", report())]
    assert first == [p.read_bytes() for p in write_report(tmp_path / "b", report())]


# The charts


def test_charts_are_wellformed_and_follow_the_pages_colours():
    for svg in (ladder(ROWS, "Set5"), cost(ROWS, "Set5"), curves("loss", CURVES["train/loss"])):
        ElementTree.fromstring(svg)
        assert "var(--ink, #7d8590)" in svg and "#010203" not in svg
    assert ">mtkd<" in ladder(ROWS, "Set5") and ">DCTLSA<" in cost(ROWS, "Set5")


def test_a_far_off_bicubic_is_named_instead_of_squeezing_the_others():
    assert "bicubic: 33.66, off this scale" in ladder(ROWS, "Set5")
    close = [row("bicubic", "bicubic", 36.9), *ROWS[:2], ROWS[4]]
    assert "off this scale" not in ladder(close, "Set5")


def test_no_cost_chart_without_two_costs():
    assert cost(ROWS[:3], "Set5") is None


def test_quality_is_drawn_against_milliseconds_where_they_were_measured(tmp_path):
    assert latency(ROWS, "Set5") is None  # nothing was
    assert latency([replace(ROWS[0], latency_ms=2.0), *ROWS[1:]], "Set5") is None  # one place says nothing
    times = {"scratch": 2.0, "mtkd": 2.0, "IMDN": 30.0, "DCTLSA": 120.0}
    timed = [replace(r, latency_ms=times.get(r.name)) for r in ROWS]
    svg = latency(timed, "Set5")
    ElementTree.fromstring(svg)
    assert all(f">{name}<" in svg for name in times) and ">mean<" not in svg
    assert "ms a picture" in svg and "against time" in svg
    markdown, web = write_report(tmp_path, Report("r", timed))
    assert "![latency_Set5](report/latency_Set5.svg)" in markdown.read_text()
    assert (tmp_path / "report" / "latency_Set5.svg").read_text() == svg and "against time" in web.read_text()


def test_files_are_listed_with_size_and_remark(tmp_path):
    (tmp_path / "s_int8.onnx").write_bytes(bytes(2000))
    files = [
        File("mtkd, int8", str(tmp_path / "s_int8.onnx"), "+0.100 dB lost on held-out tiles"),
        File("store", "s3://bucket/x"),
    ]
    markdown, web = write_report(tmp_path, Report("r", ROWS, files=files))
    (line,) = (x for x in markdown.read_text().splitlines() if "int8, " in x or "mtkd, int8" in x)
    assert line.endswith("(2.00 kB, +0.100 dB lost on held-out tiles)")
    assert "2.00 kB, +0.100 dB lost on held-out tiles" in web.read_text()
    assert "(<s3://bucket/x>)" in markdown.read_text() or "s3://bucket/x>)" in markdown.read_text()


def test_long_curves_are_averaged_and_short_ones_are_not():
    steps, values = binned([(s, float(s % 2)) for s in range(6000)], 300)
    assert len(steps) == 300 and np.allclose(values, 0.5)
    steps, values = binned([(2, 5.0), (1, 3.0)])
    assert list(steps) == [1, 2] and list(values) == [3.0, 5.0]


def test_curves_with_gaps_and_losses_over_decades_draw():
    svg = curves("loss", {"a": [(0, 10.0), (1, float("nan")), (2, 0.01)], "b": []})
    ElementTree.fromstring(svg)


def test_reports_need_no_display_and_the_table_no_matplotlib(tmp_path):
    code = (
        "import sys\n"
        "from pipeline.report.report import Report, Row, render_table, write_report\n"
        "render_table([Row('a', 'student', {'S': {'psnr_y': [1.0]}})])\n"
        "assert 'matplotlib' not in sys.modules\n"
        "write_report(sys.argv[1], Report('t', [Row('a', 'student', {'S': {'psnr_y': [1.0]}})]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)


def test_metrics_other_than_psnr_have_their_own_digits():
    rank = Metric("rank1", "rank-1", 1, "%")
    rows = [
        Row(n, "student", {"faces": {"rank1": v}})
        for n, v in (("scratch", (81.23, 81.31)), ("kd", (84.0, 84.6)))
    ]
    text = render_table(rows, metrics=(rank, SSIM), baseline="scratch")
    assert "rank-1" in text and "84.3 \N{PLUS-MINUS SIGN}0.4" in text and "SSIM" not in text
    assert gains(rows, rank, "scratch") == [
        "kd against scratch: faces +3.0 % (beyond the spread of 0.4 between seeds)."
    ]


def test_further_tables_stand_in_both_pages_and_long_ones_are_cut_in_one(tmp_path) -> None:
    rows = [[f"class <{i}>", f"{i / 40:.3f}"] for i in range(33)]
    listing = Extra("Classes", ["class", "net: F1"], rows, ["The worst come first."])
    markdown, web = write_report(tmp_path, report(extras=[listing]))
    text = markdown.read_text()
    assert "## Classes\n\n| class | net: F1 |\n| :-- | --: |\n" in text and "- The worst come first." in text
    assert "class \\<29\\>" in text and "class \\<30\\>" not in text and "3 more are in report.html." in text
    page = Reader(web.read_text())
    assert ["class <32>", "0.800"] in page.rows and not page.open
