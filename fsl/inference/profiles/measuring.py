"""Measures what a model costs at each of its points on this machine: one pass tells the heads of all."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from fsl.argument_types import checks_types
from fsl.costs.work_counting import WorkCount, WorkCounter, work_of
from fsl.errors import ConfigError, RunError
from fsl.inference.profiles.model_profile import (
    ZERO,
    ModelProfile,
    PointProfile,
    SecondsSpread,
    SideProfile,
    SplitCheck,
)
from fsl.inference.profiles.noted_ends import ends_noted
from fsl.inference.profiles.this_machine import machine_in_words, with_threads
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints
from fsl.segments.calling import outputs_of
from fsl.segments.tensor_trees import Values, as_values, tensors_of

_AS_IN_PASS = 0.01  # by what share the bytes of tensors that a head makes may differ from those made before its cut


@checks_types(leave=("inputs", "go_on"))
def measure(
    points: SplitPoints,
    inputs: Values | Any,
    *,
    repetitions: int = 50,
    warm_up: int = 5,
    threads: int = 1,
    checks: int = 3,
    machine: str | None = None,
    power_active_watts: float | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> ModelProfile:
    """Measure heads and tails of all points on the CPU, with a batch as the model takes it.

    A repetition is one pass over the model, with the time noted where each cut's module ends: until there it is the
    head's, from there on the tail's, less what the notes cost (the difference to a pass without them). Where a head
    leaves out some of that (a cut inside of a parallel branch), or a pass calls no such module (inside of a transformer
    layer, which is one fused operation), head and tail are run for themselves. So are those of `checks` cuts, from the
    first to the last, to be compared. All of them take turns, so that what else the machine does hits them alike.
    Before that come `warm_up` repetitions.

    `threads` are torch's for one operation; they are put back afterwards. `machine` names it in the profile, and
    `power_active_watts` is what it draws as it computes. `go_on` is asked before each repetition; RunError where it
    says no. ConfigError for numbers that cannot be, and for a model that
    is not on the CPU.
    """
    given = as_values(inputs)
    if given is None or not len(given):
        raise ConfigError("inputs: give a batch of at least one row, as the model takes it")
    if repetitions < 1 or warm_up < 0 or threads < 1 or checks < 0:
        raise ConfigError(
            f"repetitions={repetitions}, warm_up={warm_up}, threads={threads}, checks={checks}: there must be at least "
            "one repetition and one thread, and no less than 0 of the others"
        )
    _refuse_accelerator(points.model, given)
    with with_threads(threads), torch.no_grad(), torch.random.fork_rng(devices=[]):
        work = _work_at(points, given)
        apart = _not_in_pass(points, given, work)
        checked = _spread_over([cut for cut in points.cuts if cut not in apart], checks)
        times = _Times(points, given, alone=[*apart, *checked])
        for number in range(warm_up + repetitions):
            if number == warm_up:
                times.forget()
            if not go_on():
                raise RunError(f"the measurement was stopped before repetition {number - warm_up + 1}")
            times.repeat()
    return ModelProfile(
        model=type(points.model).__name__,
        digest=points.digest(),
        machine=machine_in_words() if machine is None else machine,
        threads=threads,
        batch=len(given),
        repetitions=repetitions,
        warm_up=warm_up,
        whole=SecondsSpread.of(times.whole),
        points=tuple(_point(points, name, work[name], times, name in apart) for name in points.names),
        checks=tuple(times.check(cut) for cut in checked),
        power_active_watts=power_active_watts,
    )


class _Times:
    """The seconds of each repetition: of the whole model, of heads in a pass, and of what is run for itself."""

    def __init__(self, points: SplitPoints, inputs: Values, alone: Sequence[str]):
        self.points, self.inputs, self.alone = points, inputs, alone
        self.passed = {cut: points.head(cut, inputs) for cut in alone}  # what the tails take
        self.forget()

    def forget(self) -> None:
        """Drop what was measured so far."""
        self.whole: list[float] = []
        self.ends: dict[str, list[float]] = {cut: [] for cut in self.points.cuts}
        self.passes: list[float] = []
        self.heads: dict[str, list[float]] = {cut: [] for cut in self.alone}
        self.tails: dict[str, list[float]] = {cut: [] for cut in self.alone}

    def repeat(self) -> None:
        """Take one repetition of everything."""
        model, now = self.points.model, time.perf_counter
        began = now()
        outputs_of(model, self.inputs)
        self.whole.append(now() - began)
        ended: dict[str, float] = {}

        def note(cut: str) -> None:
            ended[cut] = now()

        with ends_noted(model, self.points.cuts, note):
            began = now()
            outputs_of(model, self.inputs)
            self.passes.append(now() - began)
        for cut, end in ended.items():
            self.ends[cut].append(end - began)
        for cut in self.alone:
            began = now()
            self.points.head(cut, self.inputs)
            self.heads[cut].append((between := now()) - began)
            self.points.tail(cut, self.passed[cut])
            self.tails[cut].append(now() - between)

    def of_pass(self, cut: str) -> tuple[list[float], list[float]]:
        """Returns the seconds until a cut's module ended, and from there on, a pass each, less what noting cost."""
        cuts = self.points.cuts
        noting = max(0.0, median(self.passes) - median(self.whole)) / len(cuts)
        before = noting * (cuts.index(cut) + 0.5)  # the time is taken in the middle of a hook
        behind = noting * len(cuts) - before
        ends = self.ends[cut]
        heads = [max(0.0, end - before) for end in ends]
        return heads, [max(0.0, whole - end - behind) for whole, end in zip(self.passes, ends, strict=True)]

    def check(self, cut: str) -> SplitCheck:
        """Compare what was run for itself with what the pass told."""
        head, tail = median(self.heads[cut]), median(self.tails[cut])
        head_in_pass, tail_in_pass = map(median, self.of_pass(cut))
        return SplitCheck(cut, head, tail, head_in_pass, tail_in_pass, median(self.whole))


def _point(
    points: SplitPoints, name: str, work: tuple[WorkCount, WorkCount], times: _Times, apart: bool
) -> PointProfile:
    crossing = points.crossing(name)
    if name in (INPUT, OUTPUT):
        whole = SecondsSpread.of(times.whole)
        spreads = (ZERO, whole) if name == INPUT else (whole, ZERO)
        modules: tuple[nn.Module | None, nn.Module | None]
        modules = (None, points.model) if name == INPUT else (points.model, None)
    else:
        lists = (times.heads[name], times.tails[name]) if apart else times.of_pass(name)
        spreads = (SecondsSpread.of(lists[0]), SecondsSpread.of(lists[1]))
        modules = points.parts(name)
    head, tail = (
        _side(module, spread, each, times.inputs) for module, spread, each in zip(modules, spreads, work, strict=True)
    )
    return PointProfile(name, crossing.elements, crossing.bytes, head, tail, apart, crossing.shared_bytes)


def _side(module: nn.Module | None, seconds: SecondsSpread, work: WorkCount, inputs: Values) -> SideProfile:
    weights = [] if module is None else list(module.parameters())
    stored = [] if module is None else [*weights, *module.buffers()]
    return SideProfile(
        seconds=seconds,
        macs=work.macs / len(inputs),
        parameters=sum(tensor.numel() for tensor in weights),
        weight_bytes=sum(tensor.nbytes for tensor in stored),
        peak_bytes=work.peak_bytes,
    )


def _work_at(points: SplitPoints, inputs: Values) -> dict[str, tuple[WorkCount, WorkCount]]:
    """Returns the work of head and tail at each point, each really run."""
    weights, found = _stored(points.model), {}
    nothing = WorkCount(0, 0, 0)
    for name in points.names:
        passed = points.head(name, inputs)
        head = partial(points.head, name, inputs)
        tail = partial(points.tail, name, passed)
        found[name] = (
            nothing if name == INPUT else work_of(head, tensors_of(inputs), weights),
            nothing if name == OUTPUT else work_of(tail, tensors_of(passed), weights),
        )
    return found


def _not_in_pass(points: SplitPoints, inputs: Values, work: dict[str, tuple[WorkCount, WorkCount]]) -> set[str]:
    """Returns the cuts of which a pass does not tell the head.

    It calls no such module, or before it ends that, it does some of what the head leaves out.
    """
    called: set[str] = set()
    with ends_noted(points.model, points.cuts, called.add):
        outputs_of(points.model, inputs)
    until: dict[str, WorkCount] = {}
    with WorkCounter(tensors_of(inputs), _stored(points.model)) as counter:

        def note(cut: str) -> None:
            until[cut] = counter.now()

        with ends_noted(points.model, points.cuts, note):
            outputs_of(points.model, inputs)
    return {cut for cut in points.cuts if cut not in called or not _alike(work[cut][0], until[cut])}


def _alike(head: WorkCount, until: WorkCount) -> bool:
    return head.macs == until.macs and abs(head.made_bytes - until.made_bytes) <= _AS_IN_PASS * until.made_bytes


def _stored(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _spread_over(cuts: Sequence[str], count: int) -> list[str]:
    """Returns so many cuts at equal distances, from the first to the last."""
    if count >= len(cuts):
        return list(cuts)
    places = [round(number * (len(cuts) - 1) / max(1, count - 1)) for number in range(count)]
    return [cuts[place] for place in dict.fromkeys(places if count > 1 else [len(cuts) // 2] * count)]


def _refuse_accelerator(model: nn.Module, inputs: Values) -> None:
    places = {tensor.device.type for tensor in (*_stored(model), *tensors_of(inputs))}
    if others := places - {"cpu"}:
        raise ConfigError(
            f"the model or the inputs are on {', '.join(sorted(others))}; profiles are measured on the CPU"
        )
