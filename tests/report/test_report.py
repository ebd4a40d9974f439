"""The report: pages that stand alone with the right figures, charts, links to files."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from report_kit import CURVES, ROWS, Reader, report, row

from pipeline.report.charts import binned, curves, ladder
from pipeline.report.extra import Extra
from pipeline.report.pareto import cost, latency
from pipeline.report.report import File, Report, write_report

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


def test_further_tables_stand_in_both_pages_and_long_ones_are_cut_in_one(tmp_path) -> None:
    rows = [[f"class <{i}>", f"{i / 40:.3f}"] for i in range(33)]
    listing = Extra("Classes", ["class", "net: F1"], rows, ["The worst come first."])
    markdown, web = write_report(tmp_path, report(extras=[listing]))
    text = markdown.read_text()
    assert "## Classes\n\n| class | net: F1 |\n| :-- | --: |\n" in text and "- The worst come first." in text
    assert "class \\<29\\>" in text and "class \\<30\\>" not in text and "3 more are in report.html." in text
    page = Reader(web.read_text())
    assert ["class <32>", "0.800"] in page.rows and not page.open
