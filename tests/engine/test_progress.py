"""Progress in a log: few lines, each with what is done, how fast, what is left and the latest figure."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from pipeline.engine.board import Progress as Board
from pipeline.errors import InputError
from pipeline.progress import Terminal


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, io.StringIO, Clock]:
    clock, sink = Clock(), io.StringIO()
    monkeypatch.setattr("time.monotonic", clock)
    monkeypatch.delenv("FACULTY_LOG_EVERY", raising=False)
    return Terminal(Console(file=sink, width=200)), sink, clock


def test_a_log_gets_a_line_every_fifteen_seconds(log: tuple[Terminal, io.StringIO, Clock]) -> None:
    terminal, sink, clock = log
    with terminal.line("teach", 1000, "tiles") as line:
        line.to(200)  # done in another run
        for _ in range(100):  # a step of 5 tiles each second
            clock.now += 1
            line.advance(5, "shards left 3")
    lines = sink.getvalue().splitlines()
    assert lines[0] == "teach: 275/1000 tiles, 5 tiles/s, 2 min left, shards left 3"
    assert lines[1] == "teach: 350/1000 tiles, 5 tiles/s, 2 min left, shards left 3"
    assert len(lines) == 7 and lines[-1].startswith("teach: 700/1000 tiles in ")


def test_a_line_without_anything_new_waits_longer(log: tuple[Terminal, io.StringIO, Clock]) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 1000, "steps") as line:
        line.to(100, "loss 0.1")
        for second in range(1, 241):  # posted again every second, news after 40 s and after 200 s
            clock.now += 1
            line.to(100 if second < 40 else 200 if second < 200 else 300, "loss 0.1")
    assert sink.getvalue().splitlines()[:-1] == [
        "kd: 200/1000 steps, 2.5 steps/s, 5 min left, loss 0.1",
        "kd: 200/1000 steps, loss 0.1",
        "kd: 200/1000 steps, loss 0.1",
        "kd: 300/1000 steps, 0.625 steps/s, 19 min left, loss 0.1",
    ]


def test_the_pace_is_not_that_of_a_moment(log: tuple[Terminal, io.StringIO, Clock]) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 2000, "steps") as line:
        line.to(800, "loss 0.1")
        for seconds, step, note in (
            (16, 900, "loss 0.1"),
            (0.8, 1000, "held-out 30.00 dB"),
            (15, 1100, "loss 0.1"),
        ):
            clock.now += seconds
            line.to(step, note)
    paces = [re.search(r"([\d.]+) steps/s", text)[1] for text in sink.getvalue().splitlines()[:-1]]
    assert paces == ["6.25", "11.9", "12.7"]


def test_the_pace_is_by_when_news_came_not_by_when_it_is_told(
    log: tuple[Terminal, io.StringIO, Clock],
) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 10_000, "steps") as line:
        line.to(100, "loss 0.1")
        for second in range(1, 601):  # a hundred steps every eight seconds, told again every second
            clock.now += 1
            line.to(100 + 100 * (second // 8), "loss 0.1")
    paces = [float(found) for found in re.findall(r"([\d.]+) steps/s", sink.getvalue())]
    assert len(paces) > 30 and set(paces) == {12.5}


def test_a_moment_stays_one_where_nothing_comes_after_it(log: tuple[Terminal, io.StringIO, Clock]) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 2000, "steps") as line:
        line.to(800, "loss 0.1")
        clock.now += 16
        line.to(900, "loss 0.1")
        clock.now += 0.8
        for _ in range(16):  # told again, and nothing new
            line.to(1000, "loss 0.1")
            clock.now += 1
    paces = re.findall(r"([\d.]+) steps/s", sink.getvalue())
    assert paces == ["6.25", "11.9"]


def test_every_evaluation_is_told_at_once(log: tuple[Terminal, io.StringIO, Clock]) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 4000, "steps") as line:
        for step in range(100, 4001, 100):
            clock.now += 0.25
            line.to(step, f"loss {1 / step:.4f}")
            if step % 1000 == 0:
                line.to(step, f"held-out {30 + step / 1000:.2f} dB")
                line.to(step, f"held-out {30 + step / 1000:.2f} dB")  # posted again: told once
    lines = sink.getvalue().splitlines()
    told = [re.search(r"(\d+)/4000 steps.*(held-out [\d.]+ dB)", text) for text in lines]
    assert [(m[1], m[2]) for m in told if m] == [
        ("1000", "held-out 31.00 dB"),
        ("2000", "held-out 32.00 dB"),
        ("3000", "held-out 33.00 dB"),
        ("4000", "held-out 34.00 dB"),
    ]
    assert "400 steps/s, 8 s left" in lines[0] and len(lines) == 4


def test_the_pause_is_set_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACULTY_LOG_EVERY", "2.5")
    assert Terminal().every == 2.5
    monkeypatch.setenv("FACULTY_LOG_EVERY", "often")
    with pytest.raises(InputError, match="FACULTY_LOG_EVERY.*seconds.*'often'"):
        Terminal()


def test_no_lines_between_where_none_are_wanted() -> None:
    sink = io.StringIO()
    with Terminal(Console(file=sink, width=200), every=0).line("fuse", 9, "tiles") as line:
        line.to(3, "held-out 30.00 dB")
    assert len(sink.getvalue().splitlines()) == 1


def test_the_board_s_process_starts_without_torch() -> None:
    code = "import sys, pipeline.engine.board; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_board_keeps_evaluations_until_they_are_read() -> None:
    board = Board()
    board.post("kd", 500, "held-out 31.00 dB", True)
    board.post("kd", 501, "loss 0.1")
    assert board.evaluations() == [("kd", 500, "held-out 31.00 dB")] and board.evaluations() == []
    assert board.read()[0] == {"kd": (501, "loss 0.1")}


def test_the_time_of_what_waited_counts_from_its_begin_and_its_end_is_told_at_once(
    log: tuple[Terminal, io.StringIO, Clock],
) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 300, "steps") as first, terminal.line("rkd", 300, "steps") as second:
        first.to(0)
        clock.now += 60
        first.to(300, "loss 0.1")
        first.to(300, "held-out 30.00 dB")
        assert sink.getvalue() == "kd: 300/300 steps in 60 s held-out 30.00 dB\n"
        for _ in range(8):  # as the driver looks again and again
            second.to(0)
        clock.now += 30
        second.to(300, "held-out 31.00 dB")
    assert sink.getvalue().splitlines()[1:] == ["rkd: 300/300 steps in 30 s held-out 31.00 dB"]


def test_the_end_is_told_at_once_even_where_it_was_found_before(
    log: tuple[Terminal, io.StringIO, Clock],
) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 300, "steps") as line, terminal.line("rkd", 300, "steps"):
        line.to(0)
        for step in (150, 300):
            clock.now += 30
            line.to(step, "held-out 30.00 dB")
        assert sink.getvalue().splitlines()[-1] == "kd: 300/300 steps in 60 s held-out 30.00 dB"


def test_what_is_said_at_the_begin_is_not_lost(log: tuple[Terminal, io.StringIO, Clock]) -> None:
    terminal, sink, clock = log
    with terminal.line("kd", 300, "steps") as line:
        for _ in range(8):
            line.to(0, "plain steps instead of a CUDA graph: train.compile")
        clock.now += 1
        line.to(100, "loss 0.1")
    assert sink.getvalue().splitlines() == [
        "kd: plain steps instead of a CUDA graph: train.compile",
        "kd: 100/300 steps in 1 s loss 0.1",
    ]
