"""What a run's privacy has the cloud do in each round: charge accounts, noise means, withhold losses."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fsl.errors import RunError
from fsl.importing.spec import Spec
from fsl.messages.reports import DeviceReport
from fsl.privacy.member_counts import take_members
from fsl.privacy.whole_updates import noised_means
from fsl.run.private_rounds import refuse_unseen
from fsl.segments.states import State
from fsl.segments.sums import WeightedSum
from fsl.settings.federation_settings import Federation


class Protection:
    """Keeps the accounts of a run's rounds, and adds device-level privacy's noise; does nothing without privacy."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._ledger = federation.ledger
        self._privacy = federation.privacy
        self._noised = 0  # the last round whose means got noise

    def samples(self, device: int) -> int:
        """Returns the n_k that a device's account counts with; 0 without accounts."""
        return 0 if self._ledger is None else self._ledger.samples[device]

    def refused(self, held: Mapping[int, int], first: bool) -> Mapping[int, str]:
        """Take over the n_k that nodes tell; returns the devices without an account, and why."""
        if self._ledger is None:
            return {}
        here = {device: n for device, n in held.items() if device < self._federation.training.devices}
        return take_members(self._ledger, here, first)

    def charge(self, round: int, trainer: Spec | None, devices: Iterable[int]) -> None:
        """Charge these devices for a round before they train; RunError for a trainer that no account is of."""
        if self._ledger is not None:
            refuse_unseen(round, trainer, self._ledger.trainers)
            self._ledger.before(list(devices))

    def means(self, round: int, totals: Mapping[str, WeightedSum]) -> dict[str, State]:
        """Returns each segment's mean, with noise under device-level privacy (McMahan et al. 2018)."""
        means = {name: total.mean() for name, total in totals.items()}
        client = None if self._privacy is None else self._privacy.client
        if client is None or not means:
            return means
        assert self._ledger is not None
        devices = next(iter(totals.values())).weight  # all devices have weight 1
        std = client.noise_multiplier * client.clip / devices
        secure, seed = self._ledger.setting.secure, self._federation.training.seed
        self._noised = round
        return noised_means(means, self._federation.layouts, std, secure, seed, round)

    def refuse_bare(self, round: int, hook: str) -> None:
        """Raise RunError where device-level privacy is accounted for, and a hook made means without its noise."""
        if self._privacy is not None and self._privacy.client is not None and self._noised != round:
            raise RunError(
                f"round {round}: {hook} made means of its own, which have no noise, and privacy.client accounts for "
                "noised ones; begin with those that super().combine() gives"
            )

    def withhold(self, measured: dict[str, Any]) -> None:
        """Remove from a round's metrics what would tell of the data exactly."""
        if self._privacy is not None and self._privacy.withheld:
            del measured["train_loss"]

    def note(self, reports: Sequence[DeviceReport], again: Mapping[int, int]) -> None:
        """Charge what was released besides: steps that devices did again, as often as `again` says at most."""
        if self._ledger is not None:
            self._ledger.after(reports, again)

    def remarks(self) -> dict[str, Any]:
        """Returns the epsilons spent so far, by adversary, and whether losses are withheld."""
        if self._ledger is None or self._privacy is None:
            return {}
        return {**({"losses_withheld": True} if self._privacy.withheld else {}), **self._ledger.epsilons()}

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs, as JSON values."""
        return {} if self._ledger is None else {"ledger": self._ledger.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; a run without privacy has nothing."""
        if self._ledger is not None:
            self._ledger.load_state(state["ledger"])
