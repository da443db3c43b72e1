"""What an edge expects of the parties of vertical split learning, each of which sends what its own front makes."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from fsl.messages.round_plan import DeviceTask, RoundPlan
from fsl.round.party_side import seen_by, task_of
from fsl.round.workload import Worker
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import TensorTree, received, tensors_of
from fsl.wire.edge.expected import Expected


def expected_of_parties(worker: Worker, plan: RoundPlan, tasks: Iterable[DeviceTask]) -> Expected:
    """Derive what each party uploads, by running its front on two blank inputs; labels come from who shares them.

    Of batch sizes only the largest is checked here: how many people a step has is the round's to say.
    """
    with torch.no_grad():
        smashed = {party: _smashed(worker, party) for party in worker.parties}
    outputs = 0
    if tails := "tail" in worker.chain:
        back = worker.segments["back"].module
        with evaluating(back), torch.no_grad():
            outputs = sum(t.nbytes for t in tensors_of(received(call(back, TensorTree.of(smashed))))) // 2
    data, objective = task_of(worker), worker.workload.objective
    targets = data.train.targets
    unlabelled = Expected(
        smashed=smashed[worker.parties[0]],
        rows=range(1, plan.batch_size + 1),
        classes=data.classes,
        target_shape=tuple(targets.shape[1:]),
        target_dtype=targets.dtype,
        ignored=objective.ignored if objective.ignores else None,
        tails=True,
    )
    by_device = {}
    for task in tasks:
        party = worker.parties[task.device]
        holds = party == data.label_party
        mine = replace(unlabelled, smashed=smashed[party], tails=tails or not holds, outputs=outputs if holds else 0)
        by_device[task.device] = mine
    return replace(unlabelled, by_device=by_device)


def _smashed(worker: Worker, party: str) -> Tensor:
    view = seen_by(worker, party)
    front = view.segments["front"].module
    with evaluating(front):
        found = received(call(front, view.workload.data.blank(2).to(worker.accelerator)))
    assert isinstance(found, Tensor)  # a party's front gives one
    return found
