"""Requests to a model with exits: rows that are sure leave on the device, and only the others cross."""

import time
from dataclasses import dataclass
from statistics import median

import torch

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits import ExitModel, ExitSeconds
from fsl.inference.exits.exit_outputs import Replay
from fsl.inference.exits.exit_stages import fuses, inputs_of
from fsl.inference.exits.exit_walk import ExitCosts
from fsl.inference.planning.request_stream import Clocks, RequestStream, StreamResult, serve_parts
from fsl.inference.planning.split_costs import RequestParts, SplitChoice
from fsl.inference.profiles.this_machine import with_threads
from fsl.inference.split_points import OUTPUT
from fsl.segments.calling import outputs_of
from fsl.segments.modes import evaluating


@checks_types()
def exit_stage_seconds(model: ExitModel, repetitions: int = 50, warm_up: int = 5, threads: int = 1) -> ExitCosts:
    """Measure the seconds of a request here with so many threads, by stage, head and predictor: medians."""
    if repetitions < 1 or warm_up < 0 or threads < 1:
        raise ConfigError(f"repetitions={repetitions}, warm_up={warm_up}, threads={threads}: at least 1, 0 and 1")
    values, stages, heads, predictors = model.example[:1], list[float](), list[float](), list[float]()
    modules = [stage.module for stage in model.stages]
    with with_threads(threads), torch.no_grad(), evaluating(model, *modules), seeds.left_as_found():
        for stage, head, predictor in zip(model.stages, model.heads, _or_none(model), strict=False):
            stages.append(_seconds(lambda stage=stage, values=values: stage.run(values), repetitions, warm_up))
            values = stage.run(values)
            given = inputs_of(values, fuses(head))
            heads.append(_seconds(lambda head=head, given=given: head(*given), repetitions, warm_up))
            if predictor is not None:
                leading = inputs_of(values, False)[0]
                predictors.append(_seconds(lambda one=predictor, x=leading: one(x), repetitions, warm_up))
        last = model.stages[-1].module
        stages.append(_seconds(lambda: outputs_of(last, values), repetitions, warm_up))
    return ExitCosts(tuple(stages), tuple(heads), tuple(predictors))


def _or_none(model: ExitModel) -> list[torch.nn.Module | None]:
    return [*model.predictors] if len(model.predictors) else [None] * len(model.exits)


def _seconds(work: object, repetitions: int, warm_up: int) -> float:
    assert callable(work)
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)


@dataclass(frozen=True)
class ExitRequests:
    """What each row of some data asks of device and edge, in a model with exits that is divided at one point.

    `device` and `edge`: seconds by row (N,). `crosses` (N,): which rows do. `up_bytes` of one that does.
    """

    device: tuple[float, ...]
    edge: tuple[float, ...]
    crosses: tuple[bool, ...]
    up_bytes: float
    down_bytes: float

    @staticmethod
    @checks_types()
    def of(replay: Replay, seconds: ExitSeconds, down_bytes: float) -> "ExitRequests":
        """Returns what rows ask by these seconds, each stage's being those of the machine that computes it."""
        crosses, behind, compute = seconds.crosses(replay), seconds.crossing, seconds.compute
        before = ExitCosts(*(_up_to(behind, each) for each in (compute.stages, compute.heads, compute.predictors)))
        device = replay.cost(before)
        edge = replay.cost(compute) - device
        return ExitRequests(
            tuple(device.tolist()),
            tuple(edge.clamp(min=0).tolist()),
            tuple(crosses.tolist()),
            seconds.crossing_bytes,
            down_bytes,
        )


def _up_to(behind: int, seconds: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the seconds with those of the edge as none."""
    return tuple(each if k < behind else 0.0 for k, each in enumerate(seconds))


@checks_types()
def simulate_exits(stream: RequestStream, requests: ExitRequests, point: str, name: str) -> StreamResult:
    """Serve a stream in which each request is the next row, divided at `point`: rows that leave there never cross."""
    clocks, done = Clocks.start(stream.servers), []
    for number, arrival in enumerate(stream.arrivals):
        row = number % len(requests.device)
        crosses = requests.crosses[row]
        parts = RequestParts(
            head=requests.device[row],
            encode=0.0,
            up_bytes=requests.up_bytes if crosses else 0.0,
            decode=0.0,
            tail=requests.edge[row],
            down_bytes=requests.down_bytes if crosses else 0.0,
        )
        choice = SplitChoice(point if crosses else OUTPUT)
        request, clocks = serve_parts(stream, arrival, choice, parts, crosses, clocks)
        done.append(request)
    return StreamResult(name, tuple(done), power=stream.costs.power)
