"""Holds what a run works on: all that a node needs besides a plan."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.data import Augmentation, Partition, TaskData
from fsl.errors import SplitError
from fsl.faults import said
from fsl.importing.import_paths import ALLOWED
from fsl.metrics import Metrics
from fsl.models.vertical_model import VerticalModel
from fsl.objective import Objective
from fsl.round.node_store import Store
from fsl.segments.calling import call
from fsl.segments.learner import SegmentRuntime, runtimes_of
from fsl.segments.modes import needs_two_rows, start_training
from fsl.segments.states import Layout
from fsl.segments.tensor_places import empty_ones, tables
from fsl.segments.tensor_trees import Values, passed, received, shared_of
from fsl.split.cutting import SplitModel, passes_one, split
from fsl.split.exported_cut import EXAMPLE_ROWS
from fsl.split.pieces import pieces


@dataclass(frozen=True)
class Workload:
    """The model, the data and their partition, which a node receives once."""

    model: nn.Module
    cut: str | tuple[str, ...] | None
    data: TaskData
    partition: Partition
    objective: Objective
    store: Path
    metrics: Metrics = field(default_factory=Metrics)  # of evaluations, beside loss and accuracy
    head: nn.Module | None = None  # for devices that train by their own loss
    augmentation: Augmentation | None = None
    threads: int = 1
    accelerator: str = "cpu"
    places: tuple[str, ...] | None = None  # of the segments; None: device, edge, and for a third one the device
    allowed: tuple[str, ...] = field(default=ALLOWED)  # packages whose classes a plan may name
    secure: bool = False  # draws privacy's noise from the machine's secure generator, which is not repeatable
    durable: bool = True  # whether what it stores must outlive a power failure
    packs_fronts: bool = False  # whether its nodes may store private fronts together: see `Store`
    cuts: tuple[str, ...] = ()  # where devices are cut at different places: all of these, in the model's order


class Worker:
    """A workload at work on one node: one live copy of the modules, into which devices' states are swapped.

    Data and partition are the workload's own objects; it copies only the modules.
    """

    def __init__(self, workload: Workload):
        self.workload = workload
        self.accelerator = torch.device(workload.accelerator)
        # A node puts its own tensors into the modules, so it cannot share them with the caller or another node.
        self.model = copied(workload.model).to(self.accelerator)
        self.parties: tuple[str, ...] = ()  # of a model of vertically partitioned features
        if isinstance(self.model, VerticalModel):
            self.parties = self.model.parties
            self.model.measure(passed(self._blank(EXAMPLE_ROWS)))
        self.cuts = workload.cuts
        if workload.cuts:
            start_training(self.model)
            self.segments = self._pieces()
        else:
            parts: SplitModel = split(self.model, workload.cut, self._example(), workload.places)
            self.cuts = parts.cuts
            start_training(self.model, [segment.module for segment in parts])
            self.segments = runtimes_of({s.name: s.module for s in parts.segments}, self.accelerator)
        self.chain = dict(self.segments)  # the model's segments, in order
        self.modules = list(dict.fromkeys(segment.module for segment in self.chain.values()))  # run one after another
        if not workload.cuts:
            self._find_shared()
        if workload.head is not None:
            head = copy.deepcopy(workload.head)
            start_training(head)
            self.segments["head"] = SegmentRuntime("head", head, self.accelerator)
        self.store = Store(workload.store, workload.durable, workload.packs_fronts)
        self.measured: set[str] = set()  # privacy settings whose rows are measured
        self.skip_single = needs_two_rows([s.module for s in self.segments.values()])
        self._at: dict[int, Worker] = {}

    def at(self, cut: int) -> "Worker":
        """Returns the worker for devices that are cut at this one of the workload's `cuts`; this one where it has none.

        It has modules of its own: a worker's segments hold one replica at a time.
        """
        cuts = self.workload.cuts
        if not cuts:
            return self
        if cut not in self._at:
            self._at[cut] = worker = Worker(replace(self.workload, cut=cuts[cut], cuts=()))
            worker.store = self.store
        self._at[cut].take_frozen_of(self)
        return self._at[cut]

    def take_frozen_of(self, other: "Worker") -> None:
        """Take over frozen parameters that came to another worker of this model in place of the model's own."""
        if not any(segment.layout.frozen.replaced for segment in other.segments.values()):
            return
        tensors = {
            name: tensor
            for segment in other.segments.values()
            for name, tensor in segment.layout.frozen.tensors.items()
        }
        for segment in self.segments.values():
            segment.layout.frozen.load(tensors)

    def _pieces(self) -> dict[str, SegmentRuntime]:
        """Returns the pieces in which the cloud keeps a model that is cut here or there: parts of one module."""
        found = pieces(self.model, self.workload.cuts, self._example())
        return {
            name: SegmentRuntime(
                name, self.model, self.accelerator, layout=Layout(self.model, keys=keys, transients=name == "front")
            )
            for name, keys in found.items()
        }

    def _find_shared(self) -> None:
        """Find, by blank batches of two rows and of three, what segments pass on without a row per sample.

        Copies of the segments run, since a forward may change what a module keeps; none where one tensor is passed.
        """
        segments = list(self.chain.values())[:-1]
        if all(passes_one(segment.module) for segment in segments):
            return
        two, three = self._blank(2), self._blank(3)
        for segment in segments:
            copy_of_it = copied(segment.module).eval()
            try:
                with torch.no_grad(), seeds.left_as_found():
                    two, three = (received(call(copy_of_it, blank)) for blank in (two, three))
            except Exception:  # a user's model that takes no zeros: its training says so, or goes well
                return
            segment.shared = shared_of(two, three)

    def refuse_changed(self) -> None:
        """RunError where a model's forward has changed a frozen parameter, which all devices of this node share."""
        for worker in (self, *self._at.values()):
            for segment in worker.segments.values():
                segment.layout.frozen.refuse_changed()

    def _example(self) -> Values | None:
        """Returns a batch for a cut that needs one: of blank inputs, so that every node cuts alike."""
        return self._blank(EXAMPLE_ROWS)

    def _blank(self, rows: int) -> Values:
        with seeds.left_as_found(), seeds.pythons_generators(0):  # a data set may draw its items at random
            return self.workload.data.blank(rows).to(self.accelerator)


def with_weights(model: nn.Module, weights: Mapping[str, Tensor], accelerator: torch.device) -> nn.Module:
    """Copy a model with these weights (state_dict keys), in its training modes.

    It writes values into the copy's own tensors, so that other holders of these (a list, a tuple, a tied name) see them
    too; the live model's tensors lie in the segments.
    """
    model = copied(model).to(accelerator)
    start_training(model)
    with torch.no_grad():
        for name, (table, key) in tables(model)[0].items():
            table[key].copy_(weights[name])
    return model


def with_frozen(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model with these weights (state_dict keys) in place of some of its own, its modes as they are."""
    model = copied(model)
    with torch.no_grad():
        for name, (table, key) in tables(model)[0].items():
            if name in weights:
                table[key].copy_(weights[name])
    return model


def copied(model: nn.Module) -> nn.Module:
    """Copy a model; SplitError, in one line, for one that cannot be copied."""
    try:
        return copy.deepcopy(model, empty_ones(model))
    except Exception as error:
        line = said(error)
        raise SplitError(
            f"{type(model).__name__} cannot be copied, and every node has a copy ({line}); if forward leaves a step's "
            "tensors on the modules, detach() them; for weight_norm use torch.nn.utils.parametrizations"
        ) from error
