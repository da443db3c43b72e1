"""Predicts how long devices of a separable network take: a block takes as long as its slowest device with its links."""

from collections.abc import Sequence
from dataclasses import dataclass

from fsl.argument_types import checks_types
from fsl.costs import DeviceProfile, LinkProfile, load_profile
from fsl.errors import ConfigError
from fsl.inference.separable.gates import Gates
from fsl.inference.separable.separable_model import SeparableModel
from fsl.inference.separable.separable_plan import SeparablePlan


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of one stage by device: until all that it needs is there (`links`), and to compute with it.

    The stage takes the largest sum of both: devices work side by side, and none goes on before the slowest.
    """

    name: str
    links: tuple[float, ...]
    compute: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Of the slowest device with its links."""
        return max(link + compute for link, compute in zip(self.links, self.compute, strict=True))


@dataclass(frozen=True)
class SeparableLatency:
    """Seconds of a batch, stage by stage: the images, each block, and the sum of partial outputs."""

    stages: tuple[StageSeconds, ...]

    @property
    def seconds(self) -> float:
        """Of all stages, one after the other."""
        return sum(stage.seconds for stage in self.stages)


@checks_types(leave=("devices", "link"))
def separable_latency(
    model: SeparableModel,
    *,
    devices: Sequence[DeviceProfile | str] | DeviceProfile | str,
    link: LinkProfile | str,
    rows: int = 1,
) -> SeparableLatency:
    """Predict the seconds of a batch with the gates that a network has, from profiles of `fsl.costs`.

    `devices`: one profile for all, or one each. `link`: each device's own, up and down, over which its maps leave one
    after another and those of others come one after another; both are at work at once, and its latency counts once.
    Compute is multiply-adds of convolutions and linear layers, two operations each; nothing else takes time.
    """
    found = _profiles(devices, model.devices)
    way = load_profile("link", link) if isinstance(link, str) else link
    if not isinstance(way, LinkProfile):
        raise ConfigError(f"link={link!r}: give a LinkProfile, or the name of one")
    plan, gates = model.plan, model.gates
    macs = macs_of(plan, gates, model)
    names = ("images", *model.blocks, "outputs")
    stages = []
    for stage, name in enumerate(names):
        sent = _sent_bytes(model, gates, stage)
        links = tuple(rows_seconds(sent, device, rows, way) for device in range(model.devices))
        compute = tuple(
            2 * rows * macs[stage][device] / found[device].flops_per_second for device in range(model.devices)
        )
        stages.append(StageSeconds(name, links, compute))
    return SeparableLatency(tuple(stages))


def rows_seconds(sent: Sequence[Sequence[int]], device: int, rows: int, link: LinkProfile) -> float:
    """Returns the seconds until all that others send to a device is there; `sent[i][j]` are bytes of a row."""
    senders = [i for i, row in enumerate(sent) if row[device] and i != device]
    if not senders:
        return 0.0
    down = link.seconds(rows * sum(sent[i][device] for i in senders), link.down_mbit, 0.0)
    up = max(link.seconds(rows * sum(sent[i]), link.up_mbit, 0.0) for i in senders)
    return link.latency_s + max(down, up)


def macs_of(plan: SeparablePlan, gates: Gates, model: SeparableModel) -> list[list[float]]:
    """Returns the multiply-adds of one row by stage and device; stage 0 is what comes before the first block."""
    stages = [[0.0] * plan.devices for _ in range(len(plan.blocks) + 2)]
    seen: list[int] = []
    for step in plan.steps:
        if not step.layer:
            continue
        if step.block is not None and step.block not in seen:
            seen.append(step.block)
        weight = getattr(model.network.get_submodule(step.layer), "weight", None)
        if weight is None or weight.dim() < 2:
            continue
        for device in range(plan.devices):
            share = 1.0 / plan.devices  # of the output's channels; of a last layer's inputs
            if step.block is not None:
                share *= len(gates.senders(step.block, device)) / plan.devices
            stages[len(seen)][device] += weight.numel() * share * step.places
    return stages


def _sent_bytes(model: SeparableModel, gates: Gates, stage: int) -> list[list[int]]:
    """Returns the bytes of one row that each device sends each other at a stage."""
    plan, size, devices = model.plan, model.itemsize, model.devices
    sent = [[0] * devices for _ in range(devices)]
    for i in range(devices):
        for j in range(devices):
            if i == j:
                continue
            if stage == 0:
                channels, height, width = plan.input_shape
                sent[i][j] = size * channels * height * width if i == 0 else 0
            elif stage == len(plan.blocks) + 1:
                sent[i][j] = size * plan.outputs if j == 0 else 0
            elif gates.links[stage - 1][i][j]:
                sent[i][j] = size * plan.blocks[stage - 1].elements
    return sent


def _profiles(given: Sequence[DeviceProfile | str] | DeviceProfile | str, count: int) -> list[DeviceProfile]:
    listed = [given] * count if isinstance(given, DeviceProfile | str) else list(given)
    if len(listed) != count:
        raise ConfigError(f"devices: {len(listed)} profiles for {count} devices; give one, or one each")
    found = [load_profile("device", one) if isinstance(one, str) else one for one in listed]
    if not all(isinstance(one, DeviceProfile) for one in found):
        raise ConfigError("devices: give DeviceProfiles, or names of some")
    return found
