"""What a rule for choosing a round's devices is told, and what it answers."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.errors import ConfigError, RunError

Need = Literal["samples", "losses", "seconds"]
NEEDS: tuple[Need, ...] = get_args(Need)


@checks_types()
@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The devices that a round may choose from, and what is known of them.

    `devices`: their ids in order. `count`: how many are to be chosen, never more than there are: `per_round`, what the
    run asks for, or fewer. `total`: devices of the run. `deadline`: the run's own, in simulated seconds of a round;
    None without one. `held`: the n_k of `devices`, float64, where these are known from the round before.
    """

    round: int
    seed: int
    devices: Sequence[int]
    count: int
    per_round: int
    total: int
    deadline: float | None = None
    samples_of: Callable[[int], int] | None = None
    held: np.ndarray | None = None
    predict: Callable[[Sequence[int]], Mapping[int, float]] | None = None

    def samples(self, device: int) -> int:
        """Returns n_k, the samples that a device holds; RunError for a rule that does not need "samples"."""
        if self.samples_of is None:
            raise RunError('a selection that asks for n_k says so: needs = ("samples",)')
        return self.samples_of(device)

    def seconds(self, devices: Sequence[int]) -> Mapping[int, float]:
        """Predict, by device, the simulated seconds until each of these is done in a round of them all.

        RunError for a rule that does not need "seconds".
        """
        if self.predict is None:
            raise RunError('a selection that asks for predicted seconds says so: needs = ("seconds",)')
        return self.predict(devices) if devices else {}

    def generator(self, purpose: str) -> np.random.Generator:
        """Returns a generator for this round's draws of one purpose, derived from the run's seed."""
        return seeds.numpy_generator(self.seed, purpose, round=self.round)

    def shares(self) -> np.ndarray:
        """Returns each candidate's share of all candidates' samples, float64 (devices,)."""
        held = self.held
        if held is None:
            held = np.array([self.samples(device) for device in self.devices], dtype=np.float64)
        return held / held.sum()

    def draw_by_samples(self, draw: np.random.Generator, count: int) -> list[int]:
        """Draw `count` devices one after another, without replacement, each with its share of all samples."""
        places = draw.choice(len(self.devices), count, replace=False, p=self.shares())
        return [self.devices[int(place)] for place in places]


class Selection(ABC):
    """Decides which of the available devices take part in a round; subclass it for a rule of your own.

    `needs`: what the rule must know of devices: "samples" (their n_k), "losses" (those that they report) or "seconds"
    (predicted ones). A run in which that is not known refuses the rule before it starts. `foreseen`: the choice follows
    from seed, round and candidates alone, so that a private run may count ahead who takes part how often. `done_by`:
    simulated seconds after which a device must be done, alone in its round, to be ever chosen; None: any may be.

    A rule that remembers something sets it in `note`, and gives it to checkpoints by `state`. A run works on a copy.
    """

    needs: ClassVar[Sequence[Need]] = ()
    foreseen: ClassVar[bool] = False
    done_by: float | None = None

    @abstractmethod
    def select(self, candidates: Candidates) -> Sequence[int]:
        """Returns the round's devices, of `candidates.devices`; none for a round in which nobody trains."""

    def note(self, round: int, losses: Mapping[int, float]) -> None:  # noqa: B027 - most remember nothing
        """Hear which devices' work counted in a round, each with its mean training loss.

        The losses are NaN for a rule that does not need "losses".
        """

    def check(  # noqa: B027 - most have nothing to ask
        self, devices: int, devices_per_round: int | None, deadline: float | None
    ) -> None:
        """Raise ConfigError where a run of so many devices, and such a deadline, cannot be selected for."""

    def state(self) -> dict[str, Any]:
        """Returns what the rule remembers, as JSON values; a checkpoint keeps it."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - the same
        """Go on from what `state` returned."""

    def copied(self) -> Self:
        """Returns a copy for one run, which starts from what this one remembers; ConfigError where none can be made."""
        try:
            return copy.deepcopy(self)
        except Exception as error:
            raise ConfigError(
                f"selection={type(self).__name__}: it cannot be copied ({error}), and each run works on a copy; keep "
                "plain values in its attributes"
            ) from None


def refuse_all(name: str, devices: int, devices_per_round: int | None) -> None:
    """Raise ConfigError for a rule that would have nothing to choose, since every device takes part."""
    if devices_per_round is None or devices_per_round == devices:
        raise ConfigError(
            f"selection={name}: with devices_per_round={'null' if devices_per_round is None else devices_per_round} "
            f"every device takes part in every round, and it has nothing to choose; give fewer than devices={devices}"
        )
