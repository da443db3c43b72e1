"""What a round would cost at other cuts, without running any."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import nn
from torch.utils.data import Dataset

from fsl.argument_types import checks_types
from fsl.costs.cost_model import CostModel
from fsl.costs.hardware import Hardware, HardwareOptions
from fsl.costs.predicted_loads import CutCost, PredictedLoads
from fsl.costs.round_cost import DeviceLoad, RoundCost
from fsl.costs.serving import serving_of
from fsl.costs.stages import stage_costs
from fsl.data import Examples, Partitioner, TaskData, as_partitioner, as_task, divide
from fsl.errors import ConfigError
from fsl.faults import trying
from fsl.models.vertical_model import VerticalModel
from fsl.objective import Objective, as_objective
from fsl.seeds import DEFAULT_GENERATOR
from fsl.segments.calling import tried_outputs
from fsl.segments.tensor_places import in_double
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.given_strategy import as_strategy
from fsl.settings.option_groups import takes_options
from fsl.settings.training_settings import Training, TrainingOptions
from fsl.settings.wire_settings import Wire, WireOptions
from fsl.split.cutting import told_as


@dataclass(frozen=True)
class CutPrice:
    """The first round at one cut: simulated seconds, joules of all devices, bytes of all devices.

    `front_flops` and `back_flops`: forward and backward of one sample.
    """

    cut: str
    sim_seconds: float
    energy_joules: float | None
    up_bytes: int
    down_bytes: int
    model_bytes: int
    front_flops: float
    back_flops: float


class PriceOptions(TrainingOptions, WireOptions, HardwareOptions, total=False):
    """The short keywords of `price`: the fields of its groups."""


@takes_options(Training, Wire, Hardware)
@checks_types(only=("model", "cuts"))
def price(
    model: nn.Module,
    train_data: TaskData | Examples | Dataset[Any] | Sequence[Any],
    *,
    strategy: CloudStrategy | type | str,
    cuts: Sequence[str] | None = None,
    partition: Partitioner | Any = None,
    objective: Objective | Any | None = None,
    training: Training | None = None,
    wire: Wire | None = None,
    hardware: Hardware | None = None,
    **options: Unpack[PriceOptions],
) -> list[CutPrice]:
    """Predict the first round of all devices at every possible cut (or at `cuts`): a `CutPrice` each, in model order.

    Arguments, groups and their short keywords mean what they mean to `fsl.simulate`. Nothing is trained: bytes follow
    from shapes and codecs, exactly as they would be sent. ConfigError for `devices_per_round`: all devices are priced.
    """
    if isinstance(model, VerticalModel):
        raise ConfigError(
            "price: a VerticalModel is cut behind its parties' fronts, and rounds of parties are not priced"
        )
    task = as_task(train_data, double=in_double(model))
    if task.train.trimmed:
        raise ConfigError(
            "data.padding=batch: price counts bytes before any batch is drawn, and batches have lengths of their own; "
            "use padding=longest or fixed, or read the bytes of a run's first round"
        )
    training, wire = Training.of(training, options), Wire.of(wire, options)
    if training.devices_per_round is not None:
        raise ConfigError(f"devices_per_round={training.devices_per_round}: price has all devices train; leave it out")
    if training.precision != "float32":
        raise ConfigError(
            f"precision={training.precision}: price counts what crosses in the model's own type; leave it out, "
            "and read the bytes of a run's first round"
        )
    if training.deadline is not None:
        raise ConfigError(f"deadline={training.deadline:g}: price has all devices finish; leave it out")
    if "backhaul_profile" in options:
        raise ConfigError("backhaul_profile: price has no device move between edges; leave it out")
    _refuse_unfit_data(model, task)
    hardware = Hardware.of(hardware, options)
    rule = as_partitioner(partition, train_data)
    divided = divide(task, rule, training.devices, training.samples_per_device, training.seed)
    strategy = copy.deepcopy(as_strategy(strategy))  # it is bound to a run of its own here
    if (merges := getattr(strategy, "merges", 1)) != 1:
        raise ConfigError(f"merges={merges}: price has each device take the cohort's front once; use merges=1")
    strategy.bind(Federation(run="price", training=training, wire=wire))
    spec = strategy.trainer(1)
    serving = serving_of(None if spec is None else spec.build(), strategy.fronts)
    with told_as("cuts: '{}'".format):
        stages = stage_costs(model, task.train, as_objective(objective).fit(task.train.targets), cuts)
    places = hardware.machines(moving=False)
    edge_of = getattr(strategy, "edge_of", lambda device: device % training.edges)
    sizes = [divided.size(device) for device in range(training.devices)]
    at = [CutCost.of(stages, number) for number in range(len(stages) - 1)]
    loads = PredictedLoads(model, at, sizes, training, wire, serving, strategy.fronts, task.train.targets[:1])
    costs = CostModel(training.seed, places, (), tuple(cut.halves for cut in at))
    prices = []
    for number, stage in enumerate(stages[:-1]):
        every = [loads.of(device, number, edge_of(device)) for device in range(training.devices)]
        prices.append(_priced(stage.name, costs.round(every, serving), every, at[number]))
    return prices


def _refuse_unfit_data(model: nn.Module, task: TaskData) -> None:
    """Raise ConfigError where the data do not go through the model."""
    copied, what = copy.deepcopy(model).cpu().eval(), "a batch of training data"
    with DEFAULT_GENERATOR, torch.random.fork_rng(devices=[]), torch.no_grad():
        inputs, _ = task.train.batch(torch.tensor([0, 0]))
        with trying(f"{what} does not go through the model"):
            tried_outputs(copied, inputs, what)


def _priced(cut: str, cost: RoundCost, loads: Sequence[DeviceLoad], at: CutCost) -> CutPrice:
    sums = [sum(getattr(load, name) for load in loads) for name in ("up_bytes", "down_bytes", "model_bytes")]
    flops = [half.forward_flops + half.backward_flops for half in at.halves]
    return CutPrice(cut, cost.seconds, cost.joules, *sums, *flops)
