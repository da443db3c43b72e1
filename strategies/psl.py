"""Parallel split learning, and SGLR: one back trains on all devices' uploads together, fronts stay private."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fsl.strategies.split_strategy import SplitStrategy

from fsl.errors import ConfigError, one_of
from fsl.importing.spec import Spec
from fsl.messages.reports import DeviceReport
from fsl.trainers import Pooled


class PSL(SplitStrategy):
    """Parallel split learning: one step of the back on the cohort's pooled uploads; each device keeps its front.

    `weights`: the back's loss is the mean over the pooled rows ("rows"), or over the live devices with weights n_k/n
    ("samples"). Each device gets the gradient of its own mean loss.
    """

    fronts = "private"

    def __init__(self, weights: Literal["rows", "samples"] = "rows"):
        super().__init__()
        self.weights = one_of("weights", weights, ("rows", "samples"))

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of one back for the cohort, on pooled uploads."""
        return Spec(self.path(Pooled), {"weights": self.weights})


class SGLR(PSL):
    """PSL with a scaled back learning rate (SplitLr) and averaged cut gradients (SplitAvg).

    `alpha`: the back's learning rate times (B / b)^alpha. `phi`: the share of the devices that get, each step, the
    average over them of their gradients. `subset`, `average`, `ragged`: as in `fsl.trainers.Pooled`. `phase`: the
    part of the run, as shares of its rounds, in which gradients are averaged. SLR is alpha alone, SGL is phi alone.
    Source: Pal et al. 2021, arXiv 2112.05929.
    """

    def __init__(
        self,
        phi: float = 0.5,
        alpha: float = 1.0,
        subset: Literal["random", "all"] = "random",
        average: Literal["mean", "sum"] = "mean",
        ragged: Literal["drop", "pad"] = "drop",
        phase: Sequence[float] = (0.0, 1.0),
        weights: Literal["rows", "samples"] = "rows",
    ):
        super().__init__(weights)
        Pooled(
            phi=phi, alpha=alpha, subset=subset, average=average, ragged=ragged, weights=weights
        )  # raises for values that the edge would refuse
        self.phi = phi
        self.alpha = alpha
        self.subset = subset
        self.average = average
        self.ragged = ragged
        if len(phase) != 2 or not 0 <= phase[0] < phase[1] <= 1:
            raise ConfigError(f"phase={list(phase)}: it is [start, end], shares of the run with 0 <= start < end <= 1")
        self.phase = [float(share) for share in phase]

    def settings(self) -> dict[str, Any]:
        """With a phase the result depends on how many rounds there are, so such a run cannot be extended."""
        rounds = {} if self.phase == [0.0, 1.0] else {"phase_of_rounds": self.federation.training.rounds}
        return super().settings() | rounds

    def phi_at(self, round: int) -> float:
        """Returns phi within the phase, 0 outside of it."""
        start, end = self.phase
        return self.phi if start <= (round - 1) / self.federation.training.rounds < end else 0.0

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of one back for the cohort, with SplitLr and SplitAvg."""
        options = {name: getattr(self, name) for name in ("alpha", "subset", "average", "ragged", "weights")}
        return Spec(self.path(Pooled), {"phi": self.phi_at(round), **options})

    def metrics(self, round: int, reports: Sequence[DeviceReport], counts: Mapping[str, int]) -> dict[str, float]:
        """Returns counts of the averaging, and the bytes of a broadcasting link.

        `averaged`: cut gradients replaced by the common one. `ragged`: gradients dropped from it or padded, for batches
        of unequal size. `down_bytes_broadcast`: `down_bytes`, with a step's common gradient sent once.
        `up_bytes_paper`, `down_bytes_paper`: the paper's formulas |D|S and (1 - phi)|D|S + one averaged batch per step,
        S the smashed bytes of a sample, without headers.
        """
        smashed = counts.get("smashed_bytes", 0)
        return {
            "averaged": counts.get("averaged", 0),
            "ragged": counts.get("ragged", 0),
            "down_bytes_broadcast": sum(r.down_bytes for r in reports) - counts.get("broadcast_saved", 0),
            "up_bytes_paper": smashed,
            "down_bytes_paper": int((1 - self.phi_at(round)) * smashed) + counts.get("common_bytes", 0),
        }
