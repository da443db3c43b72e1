"""A trained policy for a fleet: what it does, and its files."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fsl import files, seeds
from fsl.argument_types import checks_types
from fsl.errors import CheckpointError, ConfigError
from fsl.files import load_metadata, load_tensors, save_tensors
from fsl.inference.many_devices.fleet_networks import FleetActor
from fsl.inference.many_devices.fleet_rule import FleetRule
from fsl.inference.many_devices.fleet_setting import FleetActions, FleetSetting, FleetView
from fsl.messages.strict_json import from_json
from fsl.quoting import one_line

_KEY = "fsl.fleet_policy"


@dataclass(frozen=True)
class TrainedFor:
    """For which fleet a policy was trained: what its networks' inputs and outputs mean."""

    model: str
    titles: tuple[str, ...]
    local_seconds: float
    most_bits: float
    devices: int
    channels: int
    least_watts: float
    most_watts: float
    mean_tasks: float
    nearest: float
    farthest: float

    @staticmethod
    def of(setting: FleetSetting) -> "TrainedFor":
        """Returns what a policy must know of a setting."""
        table = setting.table
        return TrainedFor(
            model=table.model,
            titles=table.titles,
            local_seconds=table.head_seconds[-1],
            most_bits=max(table.up_bits),
            devices=setting.devices,
            channels=setting.radio.channels,
            least_watts=setting.radio.least_watts,
            most_watts=setting.radio.most_watts,
            mean_tasks=setting.mean_tasks,
            nearest=setting.nearest,
            farthest=setting.farthest,
        )


class FleetPolicy(FleetRule):
    """Actors that were trained for a fleet; each device does what is likeliest. ConfigError for another fleet."""

    name = "MAHPPO"

    @checks_types()
    def __init__(self, trained_for: TrainedFor, actor: FleetActor):
        self.trained_for, self.actor = trained_for, actor

    @staticmethod
    def untrained(setting: FleetSetting, seed: int) -> "FleetPolicy":
        """Returns actors with first weights."""
        return FleetPolicy(TrainedFor.of(setting), _actor(TrainedFor.of(setting), seed))

    def check(self, setting: FleetSetting) -> None:
        """Raise ConfigError where a setting is of another fleet than the policy was trained for."""
        here = TrainedFor.of(setting)
        for name, trained in vars(self.trained_for).items():
            if getattr(here, name) != trained:
                raise ConfigError(
                    f"the policy was trained for {name}={_told(trained)}, and here it is {_told(getattr(here, name))}; "
                    "train one for this fleet"
                )

    def actions(self, setting: FleetSetting, view: FleetView) -> FleetActions:
        """Returns the likeliest action of each device, in each copy."""
        self.check(setting)
        with torch.no_grad():
            points, channels, shares = self.actor(torch.from_numpy(view.numbers(setting))).likeliest()
        return FleetActions(points.numpy(), channels.numpy(), setting.radio.watts(shares.numpy()))

    @checks_types()
    def save(self, path: str | Path) -> None:
        """Write the policy as a safetensors file, with what it was trained for in its header."""
        said = {_KEY: files.to_json(vars(self.trained_for))}
        save_tensors(Path(path), self.actor.state_dict(), said)


@checks_types()
def load_fleet_policy(path: str | Path) -> FleetPolicy:
    """Read the file of a policy; CheckpointError in a line where it is none."""
    said, tensors = load_metadata(Path(path)), load_tensors(Path(path))
    if _KEY not in said:
        raise CheckpointError(f"{path} is no policy for a fleet; give a file that FleetPolicy.save wrote")
    try:
        trained_for = from_json(said[_KEY], TrainedFor)
        actor = _actor(trained_for, 0)
        actor.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no policy for a fleet: {one_line(str(error), 200)}") from None
    return FleetPolicy(trained_for, actor)


def _actor(fleet: TrainedFor, seed: int) -> FleetActor:
    if not (1 <= fleet.devices <= 1000 and 1 <= fleet.channels <= 1000 and 2 <= len(fleet.titles) <= 10_000):
        raise ConfigError(f"devices={fleet.devices}, channels={fleet.channels}: no fleet is like that")
    generator = seeds.torch_generator(seed, "actors of a fleet")
    return FleetActor(4 * fleet.devices + 1, fleet.devices, len(fleet.titles), fleet.channels, generator)


def _told(value: object) -> str:
    return one_line(str(value), 80)
