"""What a round would cost at other cuts, without running any."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fsl.codecs import Codec
from fsl.codecs.codec_choice import CodecChoice, codec_spec
from fsl.codecs.codec_maker import codec_of
from fsl.costs.cost_model import CostModel, machines
from fsl.costs.profiles import DeviceChoice, LinkChoice
from fsl.costs.round_cost import DeviceLoad
from fsl.costs.serving import Serving, serving_of
from fsl.costs.stages import SegmentCost, StageCost, stage_costs
from fsl.data import Examples, Partitioner, TaskData, as_partitioner, as_task, divide
from fsl.importing.spec import Spec
from fsl.messages.frames import reply_bytes, upload_bytes
from fsl.objective import Objective, as_objective
from fsl.segments.modes import needs_two_rows, start_training
from fsl.segments.tensor_places import in_double
from fsl.settings.federation_settings import CloudStrategy, Federation


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


def price(
    model: nn.Module,
    train_data: TaskData | Examples | Any,
    *,
    strategy: CloudStrategy,
    cuts: Sequence[str] | None = None,
    devices: int = 10,
    partition: Partitioner | Any = None,
    samples_per_device: int | None = None,
    objective: Objective | Any | None = None,
    edges: int = 1,
    local_epochs: int = 1,
    batch_size: int = 16,
    up: CodecChoice = "fsl.codecs.Identity",
    down: CodecChoice = "fsl.codecs.Identity",
    seed: int = 0,
    device_profile: DeviceChoice = "pi4",
    edge_profile: DeviceChoice = "edge_gpu",
    link_profile: LinkChoice = "wifi_75",
) -> list[CutPrice]:
    """A round of all devices at every possible cut (or at `cuts`), in the model's order; arguments as `fsl.simulate`'s.

    Nothing is trained: bytes follow from shapes and codecs, exactly as they would be sent.
    """
    task = as_task(train_data, double=in_double(model))
    divided = divide(task, as_partitioner(partition, train_data), devices, samples_per_device, seed)
    strategy = copy.deepcopy(strategy)  # it is bound to a run of its own here
    specs = [codec_spec(name, given) for name, given in (("codec.up", up), ("codec.down", down))]
    federation = Federation("price", seed, 1, devices, {}, edges, None, local_epochs, batch_size)
    strategy.bind(replace(federation, up=specs[0], down=specs[1]))
    spec = strategy.trainer(1)
    trainer = None if spec is None else spec.build()
    serving = serving_of(trainer, strategy.fronts)
    stages = stage_costs(model, task.train, as_objective(objective), cuts)
    places = machines(device_profile, edge_profile, link_profile)
    labels = task.train.targets[:1]
    trained = copy.deepcopy(model)
    start_training(trained)
    skip = needs_two_rows([trained])
    edge_of = getattr(strategy, "edge_of", lambda device: device % edges)
    prices = []
    for index, stage in enumerate(stages[:-1]):
        front, back = stages[: index + 1], stages[index + 1 :]
        segments = (
            SegmentCost("front", "device", _sum(front, "forward_flops"), _sum(front, "backward_flops")),
            SegmentCost("back", "edge", _sum(back, "forward_flops"), _sum(back, "backward_flops")),
        )
        sent = stages if serving.kind == "none" else front
        model_bytes = 0 if strategy.fronts == "private" else 2 * int(_sum(sent, "parameter_bytes"))
        loads = [
            _load(
                _Batches.of(divided.size(device), batch_size, local_epochs, skip), stage, serving, _built(specs), labels
            )
            for device in range(devices)
        ]
        loads = [
            replace(load, device=device, edge=edge_of(device), model_bytes=model_bytes)
            for device, load in enumerate(loads)
        ]
        prices.append(_priced(stage.name, CostModel(seed, places, segments), loads, serving))
    return prices


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


def _load(
    batches: _Batches, stage: StageCost, serving: Serving, codecs: tuple[Codec, Codec], label: torch.Tensor
) -> DeviceLoad:
    up = down = 0
    for count, rows in batches.sizes if serving.kind != "none" else ():
        values, targets = torch.zeros(rows, *stage.output_shape), label.expand(rows, *label.shape[1:])
        up += count * upload_bytes(codecs[0].encode(values), targets)
        down += count * reply_bytes(codecs[1].encode(values)) if serving.kind != "stream" else 0
    steps = sum(count for count, _ in batches.sizes)
    return DeviceLoad(0, 0, steps, sum(count * rows for count, rows in batches.sizes), up, down, 0)


def _built(specs: Sequence[Spec]) -> tuple[Codec, Codec]:
    up, down = map(codec_of, specs)
    return up, down


def _sum(stages: Sequence[StageCost], name: str) -> float:
    return float(sum(getattr(stage, name) for stage in stages))
