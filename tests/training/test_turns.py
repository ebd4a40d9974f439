"""Trainings in threads of one process: who is alone is alone, and is not kept waiting."""

from __future__ import annotations

import threading

import torch

from pipeline.training.turns import Turns


def test_random_numbers_of_a_step_are_those_of_its_seed() -> None:
    turns, found, wrong = Turns(), {}, []
    started = threading.Barrier(6)

    def training(number: int) -> None:
        started.wait(20)
        for step in range(60):
            if number % 2:
                with turns.shared():
                    pass
                continue
            with turns:
                torch.manual_seed(1000 * number + step)
                a, b = torch.rand(8), torch.rand(8)
            found[number, step] = torch.cat([a, b])

    threads = [threading.Thread(target=training, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        wrong += [thread] * thread.is_alive()
    assert not wrong and len(found) == 3 * 60
    for (number, step), drawn in found.items():
        torch.manual_seed(1000 * number + step)
        assert torch.equal(drawn, torch.rand(16))


def test_who_wants_to_be_alone_is_not_kept_waiting_by_those_who_share() -> None:
    turns, stop, inside = Turns(), threading.Event(), []

    def share() -> None:
        while not stop.is_set():
            with turns.shared():
                inside.append(1)
                stop.wait(0.002)
                inside.pop()

    threads = [threading.Thread(target=share, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with turns, turns:  # also twice
            assert not inside
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
