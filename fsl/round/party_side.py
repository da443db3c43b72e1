"""One party's side of a round of vertical split learning: its features and front, and nobody else's."""

import copy
from collections.abc import Mapping
from dataclasses import replace

from fsl.data import TensorExamples
from fsl.data.vertical_data import VerticalTask, inputs_of
from fsl.errors import ConfigError
from fsl.messages.round_plan import DeviceTask, RoundPlan
from fsl.models.vertical_model import FRONT
from fsl.round.batches import load_batches, plan_batches
from fsl.round.device_side import DeviceSide
from fsl.round.front_device import Device
from fsl.round.party_device import PartyBench, PartyDevice
from fsl.round.round_privacy import device_cut
from fsl.round.step_rules import objective_of
from fsl.round.unusable import limit_of
from fsl.round.workload import Worker
from fsl.seeds import Stream
from fsl.segments.states import State

PEOPLE = 0  # the "device" of draws that concern people, not parties: batches, and layers as in the unsplit model


def task_of(worker: Worker) -> VerticalTask:
    """Returns the worker's aligned data; ConfigError for others."""
    data = worker.workload.data
    if not isinstance(data, VerticalTask) or data.parties != worker.parties:
        raise ConfigError(
            f"the model is of the parties {', '.join(worker.parties)}, and the data are not; give an "
            "fsl.data.VerticalData of these parties, in this order"
        )
    return data


def seen_by(worker: Worker, party: str) -> Worker:
    """Returns a worker as one party sees it: its front is the front, its features are the data, of labels its own."""
    data, view = task_of(worker), copy.copy(worker)
    holds = data.label_party == party
    targets = data.train.targets if holds else data.train.targets.new_zeros(len(data.train))
    own = TensorExamples(inputs_of(data.train, party), targets)
    view.workload = replace(worker.workload, data=replace(data, train=own, test=None))
    tails = {"tail": worker.segments["tail"]} if holds and "tail" in worker.segments else {}
    view.segments = {"front": worker.segments[f"{FRONT}{party}"], **tails}
    view.chain = dict(view.segments)
    return view


class PartySide(DeviceSide):
    """One party in one round. All parties draw the same people for a step, from the run's seed."""

    def __init__(self, task: DeviceTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> None:
        self.party = worker.parties[task.device]
        name = f"{FRONT}{self.party}"
        rates = {**plan.learning_rates, "front": plan.learning_rates[name]}
        own = {"front": states[name]} if name in states else {}
        if "tail" in states:
            own["tail"] = states["tail"]
        norms = dict(plan.control.clip_norms)
        control = replace(plan.control, clip_norms={**norms, "front": norms[name]} if name in norms else norms)
        plan = replace(plan, learning_rates=rates, control=control)
        super().__init__([task], plan, seen_by(worker, self.party), own)
        self.shares_labels = task_of(worker).label_party == self.party and "tail" not in worker.segments

    def open(self, device: int) -> Device:
        """Open the party with its batches and its front as they begin the round."""
        plan, worker = self.plan, self.worker
        rows = worker.workload.partition.indices(device)
        self.batches[device] = batches = plan_batches(rows, plan, PEOPLE, worker.skip_single)
        learners = self._open_learners(self.view(device).segments, device, len(batches.rows))
        data = worker.workload.data.train
        bench = PartyBench(
            device=device,
            batches=load_batches(batches, data, None, plan, device, worker.accelerator),
            front=learners["front"],
            head=None,
            tail=learners.get("tail"),
            objective=objective_of(plan, worker.workload.objective, worker.accelerator),
            layer_seeds=self._draws(f"{FRONT}{self.party}"),
            head_layer_seeds=self._draws("head"),
            tail_layer_seeds=self._draws("tail"),
            cut=device_cut(plan, device, *self._codecs(device), worker.workload.secure),
            tail_cut=self._tail_cut(device),
            loss_limit=limit_of(worker, plan),
            party=self.party,
            shares_labels=self.shares_labels,
            absences=Stream(plan.seed, "absent", device=device, round=plan.round),
        )
        opened = self._kind(bench, **plan.device.kwargs)
        if not isinstance(opened, PartyDevice):
            raise ConfigError(f"{plan.device.target} is no fsl.round.party_device.PartyDevice; derive it from one")
        return opened

    def _draws(self, segment: str) -> Stream:
        return Stream(self.plan.seed, "forward", segment=segment, device=PEOPLE, round=self.plan.round)
