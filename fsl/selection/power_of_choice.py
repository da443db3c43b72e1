"""Power-of-choice: of a few candidates those with the highest loss (Cho, Wang & Joshi 2020)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fsl.errors import ConfigError
from fsl.selection.selection import Candidates, Selection, refuse_all


class PowerOfChoice(Selection):
    """Draws `d` candidates by n_k, without replacement, and takes those with the highest loss; ties are broken by lot.

    The loss is the mean training loss that a device reported when its work last counted, over that round's local steps,
    and infinite for one whose work never did: the variant pi_rpow-d, which asks devices for nothing more. (pi_pow-d has
    all candidates evaluate the new model on their data first, pi_cpow-d on one batch; neither is done here.) `d`: at
    least devices_per_round, which is uniform in losses; None: twice as many. Source: Cho, Wang & Joshi 2020, "Client
    Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection Strategies", arXiv 2010.01243,
    section 3.
    """

    needs = ("samples", "losses")

    def __init__(self, d: int | None = None):
        if d is not None and (isinstance(d, bool) or not isinstance(d, int) or d < 1):
            raise ConfigError(f"selection.d={d!r}: the number of candidates, a whole number from 1 on, or null")
        self.d = d
        self._losses: dict[int, float] = {}

    def select(self, candidates: Candidates) -> Sequence[int]:
        """Returns the `count` devices of the highest loss among the candidates drawn."""
        draw = candidates.generator("power_of_choice")
        wanted = 2 * candidates.per_round if self.d is None else self.d
        number = min(max(wanted, candidates.count), len(candidates.devices))
        drawn = candidates.draw_by_samples(draw, number)
        lots = draw.permutation(number)
        ranked = sorted((-self._losses.get(device, math.inf), int(lot), device) for device, lot in zip(drawn, lots))
        return sorted(device for _, _, device in ranked[: candidates.count])

    def note(self, round: int, losses: Mapping[int, float]) -> None:
        """Remember each device's newest loss."""
        self._losses.update({device: loss for device, loss in losses.items() if math.isfinite(loss)})

    def check(self, devices: int, devices_per_round: int | None, deadline: float | None) -> None:
        """Refuse a run in which all take part, and a number of candidates that cannot be."""
        refuse_all("power_of_choice", devices, devices_per_round)
        assert devices_per_round is not None
        if self.d is not None and not devices_per_round <= self.d <= devices:
            raise ConfigError(
                f"selection.d={self.d}: candidates are at least devices_per_round={devices_per_round} and at most "
                f"devices={devices}"
            )

    def state(self) -> dict[str, Any]:
        """Returns the newest losses by device."""
        return {"losses": {str(device): loss for device, loss in sorted(self._losses.items())}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from these losses."""
        self._losses = {int(device): float(loss) for device, loss in state["losses"].items()}
