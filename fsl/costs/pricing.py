"""What a round would cost at other cuts, without running any."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fsl.codecs.codec_maker import codec_of
from fsl.codecs.cut_codec import CutCodec
from fsl.costs.cost_model import CostModel
from fsl.costs.hardware import Hardware, HardwareOptions
from fsl.costs.round_cost import DeviceLoad
from fsl.costs.serving import Serving, serving_of
from fsl.costs.stages import SegmentCost, StageCost, stage_costs
from fsl.data import Examples, Partition, Partitioner, TaskData, as_partitioner, as_task, divide
from fsl.errors import ConfigError
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.models.vertical_model import VerticalModel
from fsl.objective import Objective, as_objective
from fsl.segments.modes import needs_two_rows, start_training
from fsl.segments.tensor_places import in_double
from fsl.segments.tensor_trees import Values, activations_of, of_activations, tensors_of
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.given_strategy import as_strategy
from fsl.settings.option_groups import takes_options
from fsl.settings.training_settings import Training, TrainingOptions
from fsl.settings.wire_settings import Wire, WireOptions
from fsl.split.cutting import Place


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
    training, wire = Training.of(training, options), Wire.of(wire, options)
    if training.devices_per_round is not None:
        raise ConfigError(f"devices_per_round={training.devices_per_round}: price has all devices train; leave it out")
    if "backhaul_profile" in options:
        raise ConfigError("backhaul_profile: price has no device move between edges; leave it out")
    hardware = Hardware.of(hardware, options)
    rule = as_partitioner(partition, train_data)
    divided = divide(task, rule, training.devices, training.samples_per_device, training.seed)
    strategy = copy.deepcopy(as_strategy(strategy))  # it is bound to a run of its own here
    strategy.bind(Federation(run="price", training=training, wire=wire))
    spec = strategy.trainer(1)
    serving = serving_of(None if spec is None else spec.build(), strategy.fronts)
    stages = stage_costs(model, task.train, as_objective(objective), cuts)
    places = hardware.machines(moving=False)
    edge_of = getattr(strategy, "edge_of", lambda device: device % training.edges)
    batches = _batches(model, divided, training)
    prices = []
    for index, stage in enumerate(stages[:-1]):
        front, back = stages[: index + 1], stages[index + 1 :]
        segments = (_segment("front", "device", front), _segment("back", "edge", back))
        sent = stages if serving.kind == "none" else front
        model_bytes = 0 if strategy.fronts == "private" else 2 * int(_sum(sent, "parameter_bytes"))
        loads = [
            replace(
                _load(own, stage, serving, wire, task.train.targets[:1]),
                device=device,
                edge=edge_of(device),
                model_bytes=model_bytes,
            )
            for device, own in enumerate(batches)
        ]
        prices.append(_priced(stage.name, CostModel(training.seed, places, segments), loads, serving))
    return prices


def _segment(name: str, place: Place, stages: Sequence[StageCost]) -> SegmentCost:
    return SegmentCost(name, place, _sum(stages, "forward_flops"), _sum(stages, "backward_flops"))


def _batches(model: nn.Module, divided: Partition, training: Training) -> list["_Batches"]:
    """Each device's batches of a round, as this model takes them."""
    trained = copy.deepcopy(model)
    start_training(trained)
    skip = needs_two_rows([trained])
    return [
        _Batches.of(divided.size(device), training.batch_size, training.local_epochs, skip)
        for device in range(training.devices)
    ]


def _priced(cut: str, costs: CostModel, loads: Sequence[DeviceLoad], serving: Serving) -> CutPrice:
    cost = costs.round(loads, serving)
    sums = [sum(getattr(load, name) for load in loads) for name in ("up_bytes", "down_bytes", "model_bytes")]
    flops = [segment.forward_flops + segment.backward_flops for segment in costs.segments]
    return CutPrice(cut, cost.seconds, cost.joules, *sums, *flops)


@dataclass(frozen=True)
class _Batches:
    """A device's batches in a round: so many full ones, and a smaller last one in each epoch."""

    sizes: tuple[tuple[int, int], ...]  # how many batches, of how many rows

    @staticmethod
    def of(samples: int, batch_size: int, epochs: int, skip_single: bool) -> "_Batches":
        """As `fsl.round.batches.plan_batches` cuts them."""
        full, rest = divmod(samples, batch_size)
        rest = 0 if rest == 1 and skip_single else rest
        return _Batches(tuple((n, rows) for n, rows in ((full * epochs, batch_size), (epochs, rest)) if n and rows))


def _load(batches: _Batches, stage: StageCost, serving: Serving, wire: Wire, label: torch.Tensor) -> DeviceLoad:
    codecs = [CutCodec(partial(codec_of, spec)) for spec in (wire.up_spec, wire.down_spec)]
    up = down = 0
    for count, rows in batches.sizes if serving.kind != "none" else ():
        values, targets = _blank(stage.crossing, rows), label.expand(rows, *label.shape[1:])
        gradient = of_activations(activations_of(values), values)
        assert gradient is not None
        up += count * upload_bytes(codecs[0].encode(values), targets)
        down += count * reply_bytes(codecs[1].encode(gradient)) if serving.kind != "stream" else 0
    steps = sum(count for count, _ in batches.sizes)
    return DeviceLoad(0, 0, steps, sum(count * rows for count, rows in batches.sizes), up, down, 0)


def _blank(crossing: Values, rows: int) -> Values:
    """Returns zeros of the shapes that cross a cut, for so many samples."""
    zeros = [tensor.new_zeros(rows, *tensor.shape[1:]) for tensor in tensors_of(crossing)]
    return zeros[0] if isinstance(crossing, Tensor) else crossing.like(zeros)


def _sum(stages: Sequence[StageCost], name: str) -> float:
    return float(sum(getattr(stage, name) for stage in stages))
