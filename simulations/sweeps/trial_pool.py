"""Runs trials, each in a process of its own, several at a time."""

from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from fsl.simulations.sweeps.search_trial import Report, TrialProcess, TrialResult, TrialTask

T = TypeVar("T")


def run_in_processes(
    trials: Iterator[T], jobs: int, task: Callable[[T], TrialTask], report: Callable[[T], Report]
) -> Generator[tuple[T, TrialResult]]:
    """Yield each trial with its result as it ends; takes the next one only when there is room for it.

    `task` and `report` say how a trial runs and who hears of its rounds. Who stops to listen ends what runs.
    """
    running: dict[Connection, tuple[TrialProcess, T]] = {}
    try:
        while True:
            while len(running) < jobs:
                try:
                    trial = next(trials)
                except StopIteration:
                    break
                process = TrialProcess(task(trial))
                running[process.connection] = process, trial
            if not running:
                return
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                process, trial = running[connection]
                if (result := process.receive(report(trial))) is not None:
                    del running[connection]
                    yield trial, result
    finally:
        for process, _ in running.values():
            process.end()
