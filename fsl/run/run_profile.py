"""Profiles a run: a Chrome trace, and where the time went, in the run's folder."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fsl.round.workload import Workload
from fsl.run.backend import Backend
from fsl.run.checkpoint import CheckpointWriter
from fsl.run.observers import Observer, harmless
from fsl.run.run_folder import RunFolder
from fsl.run.run_log import RunLog
from fsl.run.training import Simulation
from fsl.spans.node_places import NODE_PLACES, AroundApps
from fsl.spans.span_recorder import SpanRecorder, recorded_by
from fsl.spans.timed_methods import TimedMethod, timed
from fsl.spans.trace_files import read_summary, spans_of, table

log = logging.getLogger(__name__)

OpenGrid = Callable[[], AbstractContextManager[Grid]]


class Unprofiled:
    """A run that nobody profiles: everything is as it was."""

    def rounds(self, simulation: Simulation) -> AbstractContextManager[None]:
        """Around a simulation's rounds and its end."""
        return nullcontext()

    def grid(self, backend: Backend, workload: Workload, nodes: int) -> OpenGrid:
        """What opens the Grid of the run's nodes."""
        return partial(backend.open, workload, nodes)


class RunProfile(Unprofiled):
    """Records the spans of one run, in the thread that made it."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.recorder = SpanRecorder()
        self.start = time.perf_counter_ns()
        self.nodes = 0  # in other processes, which write their own
        self.first_round = 0  # once the rounds begin

    @property
    def _parts(self) -> Path:
        return self.folder.profile / "nodes"

    @contextmanager
    def rounds(self, simulation: Simulation) -> Iterator[None]:
        """Put spans around what cloud and nodes do, and take them off again."""
        self.first_round = simulation.first_round
        with timed([*_cloud_places(simulation), *NODE_PLACES]):
            yield

    def grid(self, backend: Backend, workload: Workload, nodes: int) -> OpenGrid:
        """What opens the Grid of the run's nodes, each timed where it is fsl's own."""
        self._parts.mkdir(parents=True, exist_ok=True)
        self.nodes = 0 if backend.name == "inline" else nodes
        open_grid = partial(backend.open, workload, nodes, AroundApps(self._parts.absolute()))

        def timed_open() -> AbstractContextManager[Grid]:
            with self.recorder.span("open nodes"):
                return open_grid()

        return timed_open

    def write(self) -> None:
        """Write the trace and where the time went, and the latter into the run's log."""
        if not self.first_round:
            return  # it was refused, and its folder stays as it was
        spans = spans_of(self.recorder, self.start, self._parts, self.nodes)
        spans.write_trace(self.folder.trace_path(self.first_round))
        summary = self.folder.profile_path(self.first_round)
        spans.write_summary(summary)
        if self._parts.is_dir():
            self._parts.rmdir()
        with RunLog(self.folder.path) as lines:
            for process in read_summary(summary)["processes"]:
                for line in table(process):
                    lines.line(line)
        if not any(kind.startswith("node ") for process in spans.processes for kind in process.times):
            log.warning("profile: the nodes' spans are not here, since nodes run in programs of their own")
        elif spans.missing:
            which = ", ".join(str(node) for node in spans.missing)
            log.warning("profile: spans of node %s did not come back; its machine does not see this folder", which)


@contextmanager
def profiled(profile: bool, folder: RunFolder) -> Iterator[Unprofiled]:
    """Profile what happens in the block, if asked to; files are written at its end, also after a failure or Ctrl-C."""
    if not profile:
        yield Unprofiled()
        return
    run = RunProfile(folder)
    try:
        with recorded_by(run.recorder), run.recorder.span("start and end", name="run"):
            yield run
    finally:
        with harmless("the profile"):
            run.write()


def _cloud_places(simulation: Simulation) -> list[TimedMethod]:
    strategy, kind = type(simulation.strategy), type(simulation)

    def cloud(method: str, kind: str, owner: type = strategy, **more: Any) -> TimedMethod:
        return TimedMethod(owner=owner, method=method, kind=kind, **more)

    return [
        cloud("configure_train", "configure", opens=("round", lambda self, number, *more: f"round {number}")),
        cloud("aggregate_train", "aggregate"),
        cloud("configure_evaluate", "configure"),
        cloud("aggregate_evaluate", "aggregate"),
        cloud("send_and_receive", "messages", owner=Grid),
        cloud("evaluate", "evaluation", owner=kind),
        cloud("end_round", "end of round", owner=kind, closes="round"),
        cloud("finish", "finish", owner=kind),
        *(cloud(method, "observers", owner=Observer) for method in ("on_start", "on_round", "on_end")),
        *(cloud(method, "checkpoint", owner=CheckpointWriter) for method in ("write", "wait", "close")),
    ]
