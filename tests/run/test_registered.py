"""A round's work is that of the devices that take part, however many are registered: counted, not clocked."""

import json
import sys
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

import fsl
from fsl.availability import Availability
from fsl.data import Resample
from fsl.data.partition import Resampled
from fsl.run.observers import Observer
from tests.helpers.small import small_model, small_task

FEW, MILLION, PER_ROUND = 1000, 1_000_000, 4


class Meter(Observer):
    """Counts something in each round but the first, in which much is imported and remembered."""

    def __init__(self):
        self.counts = []

    def on_round(self, row):
        if row["round"] > 1:
            self.counts.append(self.stop())
        self.begin()

    def on_end(self):
        self.stop()


class Calls(Meter):
    """Counts the calls of functions, and what generators give, in the run's own thread."""

    def begin(self):
        self.found = 0

        def count(frame, event, argument):
            self.found += event in ("call", "c_call")

        sys.setprofile(count)

    def stop(self):
        sys.setprofile(None)
        return self.found


class Bytes(Meter):
    """The most bytes that Python and NumPy held at once, above those at a round's start."""

    def begin(self):
        tracemalloc.start()

    def stop(self):
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most


def run(devices, strategy="splitfed_v1", rounds=3, observers=(), partition=None, **options):
    return fsl.simulate(
        small_model(),
        small_task(),
        strategy=strategy,
        cut="pool",
        partition=partition or Resample(8),
        samples_per_device=8,
        devices=devices,
        devices_per_round=PER_ROUND,
        rounds=rounds,
        batch_size=8,
        evaluate_devices=3,
        progress=False,
        observers=observers,
        **options,
    )


@pytest.mark.parametrize("strategy", ["splitfed_v1", "psl", "fedavg"])
@pytest.mark.parametrize("selection", ["uniform", "round_robin", "by_samples"])
def test_a_round_calls_as_many_functions_for_a_million_registered_devices(strategy, selection):
    few, many = Calls(), Calls()
    run(FEW, strategy, observers=[few], selection=selection)
    run(MILLION, strategy, observers=[many], selection=selection)
    assert all(large < 1.1 * small for small, large in zip(few.counts, many.counts, strict=True))


@pytest.mark.parametrize("strategy", ["splitfed_v1", "psl"])
@pytest.mark.parametrize("selection", ["uniform", "round_robin"])
def test_a_round_holds_nothing_for_devices_that_do_not_take_part(strategy, selection):
    many = Bytes()
    run(MILLION, strategy, observers=[many], selection=selection)
    assert max(many.counts) < MILLION  # bytes, so not one a device


@dataclass(frozen=True, eq=False)
class CountedRows(Resampled):
    asked: set = field(default_factory=set)

    def indices(self, device):
        self.asked.add(device)
        return super().indices(device)

    def size(self, device):
        self.asked.add(device)
        return super().size(device)


class CountedPartitioner(Resample):
    def divide(self, targets, devices, seed, groups=None):
        object.__setattr__(self, "rows", CountedRows(devices, len(targets), 8, seed))
        return self.rows


def test_a_partition_is_asked_for_the_devices_of_rounds_alone(monkeypatch):
    chosen = []

    class Noted(fsl.strategies.PSL):
        def select(self, round):
            chosen.extend(found := super().select(round))
            return found

    partitioner = CountedPartitioner(8)
    monkeypatch.setattr("fsl.run.training._PICTURED", 5)  # devices whose classes are drawn, once
    run(MILLION, Noted(), partition=partitioner)
    assert partitioner.rows.asked <= {*chosen, *range(5)}
    assert len(set(chosen)) > PER_ROUND


class CountedAvailability(Availability):
    """Has devices of even ids there, in every round."""

    def __init__(self):
        self.asked = Counter()

    def available(self, device, round, seed):
        self.asked[round, device] += 1
        return device % 2 == 0


@pytest.mark.parametrize("selection", ["uniform", "round_robin", "by_samples"])
def test_who_is_away_by_a_trace_costs_what_it_names_however_many_are_registered(selection):
    trace = {device: [1] for device in range(0, 1000, 100)}
    few, many = Calls(), Calls()
    run(FEW, observers=[few], selection=selection, availability=trace)
    run(MILLION, observers=[many], selection=selection, availability=trace)
    assert all(large < 1.1 * small for small, large in zip(few.counts, many.counts, strict=True))


def test_each_device_is_asked_once_a_round_whether_it_is_there():
    availability = CountedAvailability()
    run(50, availability=availability)
    assert set(availability.asked.values()) == {1}
    assert len(availability.asked) == 3 * 50


class Written(Observer):
    """The size of what a checkpoint rewrites, and of what it adds to."""

    def __init__(self, folder):
        self.folder = folder
        self.state, self.journal = [], []

    def on_round(self, row):
        self.state.append((self.folder / "checkpoint" / "state.json").stat().st_size)
        self.journal.append(sum(path.stat().st_size for path in self.folder.glob("checkpoint/generations.*")))


def test_a_checkpoint_writes_what_its_round_changed_however_many_have_trained(tmp_path):
    written = Written(tmp_path / "run")
    run(MILLION, "psl", rounds=12, observers=[written], out=tmp_path / "run", evaluate_every=0)
    added = [after - before for before, after in zip(written.journal, written.journal[1:])]
    assert max(added) <= min(added) + 20  # digits
    assert max(written.state[1:]) <= min(written.state[1:]) + 20
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert "versions" not in state["strategy"]


def test_a_million_devices_resume_as_if_never_stopped(tmp_path):
    whole = run(MILLION, "psl", rounds=4, out=tmp_path / "whole")
    run(MILLION, "psl", rounds=2, out=tmp_path / "run")
    resumed = run(MILLION, "psl", rounds=4, out=tmp_path / "run", resume=True)
    assert all(torch.equal(tensor, resumed.states["back"][name]) for name, tensor in whole.states["back"].items())
    fronts = [{path.name: path.read_bytes() for path in (tmp_path / n / "fronts").iterdir()} for n in ("whole", "run")]
    assert len(fronts[0]) == 4 * PER_ROUND
    assert fronts[0] == fronts[1]
