"""What a node's devices have spent of their privacy, by their own count, and the limit that their owner sets.

The cloud's ledger is the cloud's word. This one is written on the node before its devices' first upload of a round; it
believes the plan's mechanisms, half of which run here, and nothing of what was counted elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fsl.data import Partition
from fsl.errors import ConfigError
from fsl.plan import RoundPlan
from fsl.privacy.claims import Setting, claim
from fsl.privacy.ledger import Ledger, read_devices
from fsl.privacy.settings import Privacy
from fsl.private_files import private_folder
from fsl.targets import locate_allowed
from fsl.trainers import EdgeTrainer


@dataclass(frozen=True)
class Limit:
    """The epsilon that none of a node's devices may pass, over all runs, against one of the ledger's adversaries."""

    epsilon: float
    against: str


class OwnLedger:
    """The ledgers of a node's devices in `folder`, one file for each `run` and its settings."""

    def __init__(self, folder: Path, run: str, limit: Limit | None):
        self.folder = folder
        self.run = run
        self.limit = limit

    def before(
        self, plan: RoundPlan, partition: Partition, devices: Sequence[int], allowed: tuple[str, ...]
    ) -> Ledger | None:
        """These devices are about to train; None where nothing protects them.

        ConfigError where a device would pass its limit: then nothing was charged.
        """
        if plan.privacy is None or not plan.privacy.private:
            if self.limit is not None:
                raise ConfigError(f"{self._told}: this run has no differential privacy (privacy=dp_sgd and others)")
            return None
        samples = {device: partition.size(device) for device in devices}
        setting = _setting(plan, plan.privacy, partition.devices, allowed)
        # A run that comes back with other settings spends by another account.
        path = self.folder / f"{self.run}-{sha256(repr(setting).encode()).hexdigest()[:8]}.json"
        private_folder(self.folder)
        ledger = Ledger(setting, samples, path)
        ledger.private = True
        ledger.load_state({})
        for device in devices:
            ledger.charge(device, ledger.steps(samples[device]), ledger.setting.passes)
        if self.limit is not None:
            earlier = self._earlier(path, self.limit.against)
            for device in devices:
                self._check(device, ledger, earlier.get(device, 0.0))
        ledger.write()
        return ledger

    def _check(self, device: int, ledger: Ledger, earlier: float | None) -> None:
        assert self.limit is not None
        found = claim(self.limit.against, ledger.setting, ledger.tallies[device])
        if found.epsilon is None:
            raise ConfigError(f"{self._told}: it is unbounded for device {device}, since {found.unbounded}")
        if earlier is None or earlier + found.epsilon > self.limit.epsilon:
            before = "an unbounded one" if earlier is None else f"{earlier:.4g}"
            raise ConfigError(
                f"{self._told}: with this round device {device} would have spent {found.epsilon:.4g} in this run, "
                f"after {before} in others"
            )

    @property
    def _told(self) -> str:
        assert self.limit is not None
        return f"node configuration: max-epsilon={self.limit.epsilon:g} against '{self.limit.against}'"

    def _earlier(self, path: Path, against: str) -> dict[int, float | None]:
        """What other runs cost each device: epsilons of separate runs add up. None: unbounded."""
        total: dict[int, float | None] = {}
        for other in sorted(self.folder.glob("*.json")):
            if other == path:
                continue
            for device, (_, epsilons) in read_devices(other).items():
                cost, so_far = epsilons[against], total.get(device, 0.0)
                total[device] = None if cost is None or so_far is None else so_far + cost
        return total


def _setting(plan: RoundPlan, privacy: Privacy, devices: int, allowed: tuple[str, ...]) -> Setting:
    spread = 1
    if plan.trainer is not None:
        spread = locate_allowed(plan.trainer.target, allowed, EdgeTrainer)(**plan.trainer.kwargs).spread(devices)
    return Setting(
        privacy,
        plan.fronts,
        plan.trainer is not None,
        plan.batch_size,
        plan.local_epochs,
        spread,
        secure=True,
        encrypted=True,
    )


def done_again(ledger: Ledger, wasted: Mapping[int, int]) -> None:
    """Steps that devices did a second time, by device."""
    for device, steps in wasted.items():
        ledger.charge_again(device, steps)
    ledger.write()
