"""The ledger: what was released of each device in a run, written before each release."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from fsl.errors import CheckpointError
from fsl.files import write_json
from fsl.privacy.assumptions import assumed
from fsl.privacy.claims import ADVERSARIES, Claim, ReleaseCounts, Setting, claim


class Repeated(Protocol):
    """The fields of a device report that say which releases were repeated."""

    @property
    def device(self) -> int:
        """Whose they are."""

    @property
    def wasted_steps(self) -> int:
        """Steps that it did again."""

    @property
    def restarts(self) -> int:
        """How often it went back to an earlier step."""


@dataclass(frozen=True)
class EpsilonTarget:
    """The epsilon that a run's noise was solved for, against who gets the model.

    `rounds`: in how many each device trains, as planned. `planned`: the n_k that it was solved with. `solve`: the noise
    multiplier that reaches it for other n_k, by device; ConfigError where none does.
    """

    epsilon: float
    rounds: Mapping[int, int]
    planned: Mapping[int, int]
    solve: Callable[[Mapping[int, int]], float]


class Ledger:
    """Every device's releases in a run. `path`: privacy.json, written before each round's releases.

    `trainers`: the edge trainers that the account is of, as `fsl.run.private_rounds` describes them; None
    where nobody looked.
    """

    def __init__(
        self,
        setting: Setting,
        samples: Sequence[int] | Mapping[int, int],
        path: Path | None,
        trainers: frozenset[str] | None = None,
    ):
        self.setting = setting
        self.samples = samples
        self.path = path
        self.trainers = trainers
        self.target: EpsilonTarget | None = None  # what its noise was solved for
        self.release_counts: dict[int, ReleaseCounts] = {}
        self.private = False  # the file is its owner's alone, as a node's own is

    def charge(self, device: int, steps: int, passes: int, rounds: int = 1) -> None:
        """Add a device's coming releases to its counts: `steps`, `passes` over its samples, `rounds`."""
        released = self.release_counts.get(device) or ReleaseCounts(self.samples[device])
        self.release_counts[device] = released.more(steps, passes, rounds)

    def before(self, devices: Sequence[int]) -> None:
        """Charge these devices for the round that they are about to train, and write the file."""
        setting = self.setting
        for device in devices:
            self.charge(device, self.steps(self.samples[device]), setting.passes)
        self.write()

    def after(self, reports: Sequence[Repeated], again: Mapping[int, int]) -> None:
        """Charge steps that were done again in the last round, and write the file.

        `again`: how often devices that were lost, and can report nothing, may have begun their round anew.
        """
        for device, times in again.items():
            self.charge(device, times * self.steps(self.samples[device]), times * self.setting.passes, rounds=0)
        for report in reports:
            self.charge_again(report.device, report.wasted_steps, report.restarts)
        self.write()

    def charge_again(self, device: int, steps: int, restarts: int = 1) -> None:
        """So many steps of a device were done again, after it went back so often, each time to the same first rows."""
        rounds = max(math.ceil(steps / self.steps(self.samples[device])), min(restarts, steps))
        self.charge(device, steps, rounds * self.setting.passes, rounds=0)

    def steps(self, samples: int) -> int:
        """The steps of a device's round."""
        return self.setting.passes * -(-samples // self.setting.batch_size)

    def claims(self) -> dict[str, Claim]:
        """The worst claim over devices, by adversary."""
        release_counts = set(self.release_counts.values()) or {ReleaseCounts(1)}
        return {
            name: max((claim(name, self.setting, t) for t in release_counts), key=_severity) for name in ADVERSARIES
        }

    def epsilons(self) -> dict[str, float | None]:
        """Each adversary's epsilon for a round's metrics; None where it is unbounded."""
        return {epsilon_metric(name): found.epsilon for name, found in self.claims().items()}

    def write(self) -> None:
        """Write privacy.json."""
        if self.path is not None:
            write_json(self.path, self.report(), self.private)

    def report(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        setting = self.setting
        told = {  # once for all devices of equal counts, which most are
            released: asdict(released)
            | {"epsilon": {name: claim(name, setting, released).epsilon for name in ADVERSARIES}}
            for released in set(self.release_counts.values())
        }
        devices = {device: told[released] for device, released in sorted(self.release_counts.items())}
        return {
            "noise": "secure" if setting.secure else "simulated",
            "delta": setting.privacy.delta,
            "mechanisms": {k: v for k, v in asdict(setting.privacy).items() if isinstance(v, Mapping)},
            "adversaries": {name: {"who": ADVERSARIES[name], **asdict(found)} for name, found in self.claims().items()},
            "assumes": assumed(setting),
            "devices": devices,
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {str(device): asdict(released) for device, released in self.release_counts.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned.

        Secure noise is drawn anew when a round is repeated, so that rounds count which privacy.json has and the
        checkpoint has not. CheckpointError where that file is gone, or has less than the checkpoint.
        """
        self.release_counts = {int(device): ReleaseCounts(**released) for device, released in state.items()}
        if not self.setting.secure or self.path is None:
            return
        if self.path.exists():
            told = {device: found for device, (found, _) in read_devices(self.path).items()}
        elif not self.release_counts:
            return
        else:
            raise CheckpointError(
                f"{self.path} is missing, and rounds that were begun after the checkpoint are counted nowhere else; "
                "take it from a backup, or begin a new run, whose ledger starts with what this one had spent unknown"
            )
        for device, released in self.release_counts.items():
            if (newer := told.get(device)) is None or not released.within(newer):
                raise CheckpointError(
                    f"{self.path} has fewer releases of device {device} than the checkpoint: it is an older one; take "
                    "the newest from a backup, for what was released since is counted nowhere else"
                )
        self.release_counts |= told


def read_devices(path: Path) -> dict[int, tuple[ReleaseCounts, Mapping[str, float | None]]]:
    """What a ledger's file says of each device: its releases, and the epsilon by adversary; CheckpointError if none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["devices"]
        return {
            int(k): (ReleaseCounts(**{f.name: one[f.name] for f in fields(ReleaseCounts)}), one["epsilon"])
            for k, one in told.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}), so that nobody knows what was spent; take it from a backup"
        ) from None


def epsilon_metric(adversary: str) -> str:
    """The name of an adversary's epsilon in a round's metrics."""
    return f"epsilon_{adversary.replace('+', '_')}"


def _severity(found: Claim) -> float:
    return math.inf if found.epsilon is None else found.epsilon
