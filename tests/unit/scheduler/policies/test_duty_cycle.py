"""A policy that computes for long is stopped and continued in turns, and never after its answer."""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP

import pytest

from kit.machine.manual_clock import ManualClock
from roost.launchers.daemon.tasks import Timers
from roost.scheduler.policies.duty_cycle import RUNS_S, STOPS_S, DutyCycle


class Cycle:
    """A cycle on a clock of its own, and the signals with the milliseconds since its begin."""

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.clock = ManualClock(0.0)
        self.sent = list[tuple[int, int]]()
        self.duty = DutyCycle(
            lambda signum: self.sent.append((round(self.clock.time() * 1e3), signum)),
            lambda: self.processes,
            Timers(self.clock),
        )


def test_after_its_free_time_a_policy_runs_in_turns() -> None:
    cycle = Cycle()
    cycle.duty.begin(0.2)
    cycle.clock.advance(0.199)
    assert cycle.sent == []
    cycle.clock.advance(0.020)
    assert cycle.sent == [(200, SIGSTOP), (208, SIGCONT), (210, SIGSTOP), (218, SIGCONT)]
    assert (RUNS_S, STOPS_S) == (0.002, 0.008)


@pytest.mark.parametrize("answers_after_s", [0.1, 0.205, 0.209])
def test_the_turns_end_with_the_answer(answers_after_s: float) -> None:
    cycle = Cycle()
    cycle.duty.begin(0.2)
    cycle.clock.advance(answers_after_s)
    cycle.duty.end()
    before = list(cycle.sent)
    cycle.clock.advance(10.0)
    assert cycle.sent == before


def test_the_next_question_has_its_free_time_again() -> None:
    cycle = Cycle()
    cycle.duty.begin(0.2)
    cycle.clock.advance(0.5)
    cycle.duty.end()
    cycle.sent.clear()
    cycle.duty.begin(0.2)
    cycle.clock.advance(0.199)
    assert cycle.sent == []
    cycle.clock.advance(0.002)
    assert [signum for _, signum in cycle.sent] == [SIGSTOP]


def test_many_processes_run_no_longer_together_than_one() -> None:
    cycle = Cycle(processes=64)
    cycle.duty.begin(0.2)
    cycle.clock.advance(0.8)
    assert cycle.sent == [(200, SIGSTOP), (712, SIGCONT), (714, SIGSTOP)]


def test_processes_that_were_started_later_count_soon() -> None:
    cycle = Cycle()
    cycle.duty.begin(0.2)
    cycle.clock.advance(0.201)
    cycle.processes = 20
    cycle.clock.advance(0.5)
    stops = [at for at, signum in cycle.sent if signum == SIGSTOP]
    assert stops[9:] == [290, 300, 462, 624]
