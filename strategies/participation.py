"""Who takes part in a round: of the available devices those that are selected, and of these those that are not late."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from fsl.strategies import asked

from fsl.availability import knows_who_is_away
from fsl.gapped_range import GappedRange
from fsl.messages.reports import DeviceReport
from fsl.selection import Candidates
from fsl.settings.federation_settings import Federation

log = logging.getLogger(__name__)


class Participation:
    """Asks a run's availability and selection about each round, and what the selection remembers."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._selection = federation.selection.copied()
        self._held: np.ndarray | None = None  # the n_k of all devices, where all are there
        self._there: tuple[int, Sequence[int]] | None = None  # a round, and who is there

    @property
    def name(self) -> str:
        """The selection's hook, as its user knows it."""
        return f"{type(self._selection).__name__}.select()"

    def available(self, round: int) -> Sequence[int]:
        """Returns the devices that are there in a round, in order of id; asks about each once a round at most."""
        if self._there is None or self._there[0] != round:
            self._there = round, self._found(round)
        return self._there[1]

    def _found(self, round: int) -> Sequence[int]:
        training, availability = self._federation.training, self._federation.availability
        if availability is None:
            return range(training.devices)
        if knows_who_is_away(availability):
            away = availability.away(training.devices, round, training.seed)
            if away is not None:
                name = f"{type(availability).__name__}.away()"
                return GappedRange(training.devices, asked.devices_of(round, name, away, training.devices, none=True))
        name = f"{type(availability).__name__}.available()"
        return [
            device
            for device in range(training.devices)
            if asked.truth_of(round, name, device, availability.available(device, round, training.seed))
        ]

    def select(
        self, round: int, held: Mapping[int, int] | None, seconds: Callable[[Sequence[int]], Mapping[int, float]]
    ) -> Sequence[int]:
        """Ask the selection for a round's devices.

        `held`: the n_k of a real federation's devices that are online; None where the run's own partition says them.
        `seconds` predicts.
        """
        training, needs = self._federation.training, self._selection.needs
        devices = self.available(round)
        if held is not None and "samples" in needs:
            devices = [device for device in devices if device in held]
        if not devices:
            return []
        wanted = training.devices if training.devices_per_round is None else training.devices_per_round
        samples = self._federation.samples if held is None else held.__getitem__
        return self._selection.select(
            Candidates(
                round=round,
                seed=training.seed,
                devices=devices,
                count=min(wanted, len(devices)),
                per_round=wanted,
                total=training.devices,
                deadline=training.deadline,
                samples_of=samples if "samples" in needs else None,
                held=self._known_held(devices) if held is None and "samples" in needs else None,
                predict=seconds if "seconds" in needs else None,
            )
        )

    def _known_held(self, devices: Sequence[int]) -> np.ndarray | None:
        """Returns the n_k of a simulation's devices; None where those who are there stand in a list of their own."""
        if not isinstance(devices, range | GappedRange):
            return None
        held = self._all_held()
        return np.delete(held, devices.gaps) if held is not None and isinstance(devices, GappedRange) else held

    def _all_held(self) -> np.ndarray | None:
        """Returns the n_k of all devices of a simulation, whose partition stays: asked for once."""
        samples, devices = self._federation.samples, self._federation.training.devices
        if self._held is None and samples is not None:
            self._held = np.fromiter((samples(device) for device in range(devices)), np.float64, devices)
        return self._held

    def say(self, round: int, available: int, chosen: int, late: int) -> None:
        """Log a round that has fewer devices than the run asks for, in one line."""
        training, told = self._federation.training, self._federation.availability is not None
        of = f"{available} of {training.devices} devices are available" if told else ""
        if not chosen:
            why = of if told and not available else "none was selected"
            log.warning("round %d: nobody trains, and the model stays as it was: %s", round, why)
        elif chosen == late:
            log.warning("round %d: nobody trains, and the model stays as it was: all %d devices are late", round, late)
        elif told and available < (training.devices_per_round or 0):
            log.warning("round %d: %s, fewer than devices_per_round=%d", round, of, training.devices_per_round)

    def columns(self, available: int, late: int) -> dict[str, int]:
        """Returns what a round's metrics get: how many were available and late, where the run asks for it."""
        found = {} if self._federation.availability is None else {"available": available}
        return found if self._federation.training.deadline is None else {**found, "late": late}

    def note(self, round: int, reports: Sequence[DeviceReport]) -> None:
        """Tell the selection whose work counted."""
        heard = "losses" in self._selection.needs
        self._selection.note(round, {r.device: r.mean_loss if heard else math.nan for r in reports})

    def state(self) -> dict[str, object]:
        """Returns what a checkpoint needs, as JSON values; nothing for a selection that remembers nothing."""
        kept = asked.memory_of(type(self._selection).__name__, self._selection.state())
        return {"selection": kept} if kept else {}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `state` returned."""
        if kept := state.get("selection"):
            assert isinstance(kept, Mapping)
            self._selection.load_state(kept)
