"""The table of a report: order, spread, digits, and marks that can be trusted."""

from __future__ import annotations

import re

import pytest
from report_kit import ROWS, row

from pipeline.report.report import Metric, Row, render_table
from pipeline.report.table import PSNR, SSIM, arrange, gains, short, spread


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
