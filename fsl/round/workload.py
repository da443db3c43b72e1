"""What a run works on: all that a node needs and that does not come in a plan."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fsl.data import Augmentation, Partition, TaskData
from fsl.errors import SplitError
from fsl.importing.import_paths import ALLOWED
from fsl.objective import Objective
from fsl.round.node_store import Store
from fsl.segments.learner import SegmentRuntime
from fsl.segments.modes import needs_two_rows, start_training
from fsl.segments.tensor_places import tables
from fsl.split.cutting import SplitModel, split


@dataclass(frozen=True)
class Workload:
    """The model, the data and who holds which of it; sent to a node once."""

    model: nn.Module
    cut: str | tuple[str, ...] | None
    data: TaskData
    partition: Partition
    objective: Objective
    store: Path
    head: nn.Module | None = None  # for devices that train by a loss of their own
    augmentation: Augmentation | None = None
    threads: int = 1
    accelerator: str = "cpu"
    allowed: tuple[str, ...] = field(default=ALLOWED)  # packages whose classes a plan may name
    secure: bool = False  # privacy's noise comes from the machine's secure generator, and is not repeatable


class Worker:
    """A workload brought to life on one node: one live copy of the modules, states are swapped in.

    Data and partition are the workload's very objects; only the modules are copied.
    """

    def __init__(self, workload: Workload):
        self.workload = workload
        self.accelerator = torch.device(workload.accelerator)
        # A node puts tensors of its own into the modules, so it cannot share them with the caller or another node.
        self.model = copied(workload.model)
        self.split: SplitModel = split(self.model, workload.cut)
        start_training(self.model, [segment.module for segment in self.split])
        self.segments = {s.name: SegmentRuntime(s.name, s.module, self.accelerator) for s in self.split.segments}
        self.chain = dict(self.segments)  # what makes the model, in order
        if workload.head is not None:
            head = copy.deepcopy(workload.head)
            start_training(head)
            self.segments["head"] = SegmentRuntime("head", head, self.accelerator)
        self.store = Store(workload.store)
        self.measured: set[str] = set()  # the plans' privacy that rows have been tried for
        self.skip_single = needs_two_rows([s.module for s in self.segments.values()])


def with_weights(model: nn.Module, weights: Mapping[str, Tensor], accelerator: torch.device) -> nn.Module:
    """A copy of a model with these weights (state_dict keys), in the modes that it is trained in.

    Values are written into the copy's own tensors, so that whatever else holds them (a list, a tuple, a tied name) has
    them as well; segments' tensors lie in the segments.
    """
    model = copied(model).to(accelerator)
    start_training(model)
    with torch.no_grad():
        for name, (table, key) in tables(model)[0].items():
            table[key].copy_(weights[name])
    return model


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model; SplitError, in one line, for one that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise SplitError(
            f"{type(model).__name__} cannot be copied, and every node has a copy ({line}); if forward leaves a step's "
            "tensors on the modules, detach() them; for weight_norm use torch.nn.utils.parametrizations"
        ) from error
