"""Keeps a node's own ledgers of its devices' privacy loss, and holds them to their owner's limit.

The cloud's ledger is the cloud's word. The node writes this one before its devices' first upload of a round; it takes
the mechanisms from the plan, half of which run here, and no counts from elsewhere.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch

from fsl.data import Partition
from fsl.deployment.locks import locked
from fsl.errors import CheckpointError, ConfigError, LimitError
from fsl.messages.round_plan import RoundPlan
from fsl.privacy.claims import Setting, claim
from fsl.privacy.ledger import Ledger, read_devices
from fsl.privacy.member_counts import take_counts
from fsl.privacy.settings import Privacy
from fsl.privacy.trainer_accounts import fronts_moved
from fsl.private_files import private_folder
from fsl.round.batches import sample_rate
from fsl.trainers import EdgeTrainer

Accountant = Literal["rdp", "prv"]
LEDGERS = "privacy"  # the folder of a node's state that they lie in
MAX_DELTA = 1e-4  # of all runs together, where the owner names none: ten times the default delta
_PATIENCE = 60.0  # seconds to wait for another process that has the ledgers
_ROUNDING = 1 + 1e-9  # in float64 ten times 1e-5 is not quite 1e-4


@dataclass(frozen=True)
class Limit:
    """The privacy loss that no device of a node may pass, over all runs, against one of the ledger's adversaries.

    Epsilons and deltas of separate runs add up; `epsilon` and `delta` bound the sums.
    """

    epsilon: float
    against: str
    delta: float = MAX_DELTA


class OwnLedger:
    """The ledgers of a node's devices in `folder`, one file for each `run` and its settings.

    `accountant`: this node's own, whatever the plan says. `same_rows`: all devices of the node hold the same rows
    (rows="all"), so that each device's loss counts for every other.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        limit: Limit | None,
        accountant: Accountant = "rdp",
        same_rows: bool = False,
    ):
        self.folder = folder
        self.run = run
        self.limit = limit
        self.accountant = accountant
        self.same_rows = same_rows

    def before(
        self,
        plan: RoundPlan,
        partition: Partition,
        devices: Sequence[int],
        allowed: tuple[str, ...],
        *,
        tail: bool,
    ) -> "RoundAccount | None":
        """Charge these devices for a round that they are about to train; None without privacy.

        `tail`: whether the model has a tail, as this node cut it.

        LimitError where a device would pass its limit; then it charges nobody.
        """
        if plan.privacy is None or not plan.privacy.private:
            if self.limit is not None:
                raise LimitError(f"{self._told}: this run has no differential privacy (privacy=dp_sgd and others)")
            return None
        samples = {device: partition.size(device) for device in devices}
        if plan.privacy.poisson:
            for device, held in samples.items():
                sample_rate(held, plan.batch_size, device)
        if self.limit is not None and not self.same_rows:
            _refuse_shared_rows(partition, devices)
        privacy = replace(plan.privacy, accountant=self.accountant)
        setting = replace(_setting(plan, privacy, partition.devices, allowed), tail=tail)
        # A run that comes back with other settings gets another account.
        path = self.folder / f"{self.run}-{sha256(repr(setting).encode()).hexdigest()[:8]}.json"
        account = RoundAccount(self, setting, samples, path)
        account.charge(devices, lambda ledger, device: _round_of(ledger, device))
        return account

    def check(self, device: int, ledger: Ledger) -> None:
        """Raise LimitError where a device would pass the owner's limit by this ledger."""
        if self.limit is None:
            return
        against, path = self.limit.against, ledger.path
        found = claim(against, ledger.setting, ledger.release_counts[device])
        if found.epsilon is None:
            raise LimitError(f"{self._told}: it is unbounded for device {device}, since {found.unbounded}")
        earlier, deltas = 0.0, 0.0
        for other in sorted(self.folder.glob("*.json")):
            if other != path:
                cost, delta = _cost(other, against, self.same_rows)
                earlier, deltas = earlier + cost, deltas + delta
        if self.same_rows:
            here = [t for d, t in ledger.release_counts.items() if d != device]
            earlier += sum(_spent(claim(against, ledger.setting, released).epsilon) for released in here)
        spent = _spent(found.epsilon)
        if not earlier + spent <= self.limit.epsilon:  # also true where one is NaN
            before = "an unbounded one" if math.isinf(earlier) else f"{earlier:.4g}"
            raise LimitError(
                f"{self._told}: with this round device {device} would have spent {spent:.4g} in this run, "
                f"after {before} in others"
            )
        if not deltas + found.delta <= self.limit.delta * _ROUNDING:
            raise LimitError(
                f"node configuration: max-delta={self.limit.delta:g} over all runs: this run asks device {device} for "
                f"{found.delta:g}, after {deltas:g} in others; give the run a smaller privacy.delta"
            )

    @property
    def _told(self) -> str:
        assert self.limit is not None
        return f"node configuration: max-epsilon={self.limit.epsilon:g} against '{self.limit.against}'"


class RoundAccount:
    """Charges a node's devices for one round of a private run, before they release anything."""

    def __init__(self, own: OwnLedger, setting: Setting, samples: Mapping[int, int], path: Path):
        self._own = own
        self._setting = setting
        self._samples = samples
        self._path = path

    def again(self, device: int, steps: int) -> None:
        """Charge a device for `steps` steps that it is about to repeat; LimitError where that passes its limit."""
        self.charge([device], lambda ledger, one: ledger.charge_again(one, steps))

    def charge(self, devices: Sequence[int], add: Callable[[Ledger, int], None]) -> None:
        """Write down what `add` adds for each device, if the limit allows it; else write nothing."""
        with _alone(self._own.folder):
            ledger = Ledger(self._setting, self._samples, self._path)
            ledger.private = True
            if self._path.exists():
                ledger.release_counts = {device: released for device, (released, _) in read_devices(self._path).items()}
            take_counts(ledger, self._samples)
            for device in devices:
                add(ledger, device)
            for device in devices:
                self._own.check(device, ledger)
            ledger.write()


def spent(folder: Path, against: str, same_rows: bool) -> float | None:
    """Returns the epsilon that a node's worst device has spent over all runs by the ledgers in `folder`.

    None without a ledger; infinite where it is unbounded. CheckpointError for a damaged ledger.
    """
    costs = [_cost(path, against, same_rows)[0] for path in sorted(folder.glob("*.json"))]
    return sum(costs) if costs else None


def _cost(path: Path, against: str, same_rows: bool) -> tuple[float, float]:
    """Returns what a run cost a sample of this node: epsilon (infinite: unbounded) and delta.

    Any of the node's devices may have held the sample there, and all of them where they hold the same rows.
    """
    costs = [_spent(epsilons[against]) for _, epsilons in read_devices(path).values()]
    epsilon = sum(costs) if same_rows else max(costs, default=0.0)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        delta = float(told["adversaries"][against]["delta"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}), so that nobody knows what was spent; take it from a backup"
        ) from None
    return epsilon, delta


def _round_of(ledger: Ledger, device: int) -> None:
    ledger.charge(device, ledger.steps(ledger.samples[device]), ledger.setting.passes)


def _spent(epsilon: float | None) -> float:
    """Returns an epsilon that can be added up: at least 0, infinite where it is unbounded."""
    return math.inf if epsilon is None else max(0.0, epsilon)


def _refuse_shared_rows(partition: Partition, devices: Sequence[int]) -> None:
    rows = torch.cat([partition.indices(device) for device in devices])
    if len(rows.unique()) < len(rows):
        raise ConfigError(
            "node configuration: max-epsilon: in this run's partition devices of this node share rows, which no limit "
            "of a device bounds; give devices rows of their own"
        )


def _setting(plan: RoundPlan, privacy: Privacy, devices: int, allowed: tuple[str, ...]) -> Setting:
    spread = 1
    if plan.trainer is not None:
        trainer = plan.trainer.build(allowed, EdgeTrainer)
        spread = fronts_moved(trainer, devices)
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock these ledgers against other processes and threads; ConfigError where one does not let go."""
    private_folder(folder)
    try:
        descriptor = locked(folder / ".lock", _PATIENCE)
    except BlockingIOError:
        raise ConfigError(
            f"{folder}: another process has held its ledgers for {_PATIENCE:g} s; end it, or give this node a state of "
            "its own"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)
