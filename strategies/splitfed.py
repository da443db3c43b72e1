"""SplitFed: split learning in parallel, with averaging (Thapa et al., AAAI 2022; Gawali et al. 2020)."""

from typing import Literal

from fsl.strategies.split_strategy import SplitStrategy

from fsl.errors import one_of
from fsl.importing.spec import Spec
from fsl.trainers import Replicated, Sequential


class SplitFedV1(SplitStrategy):
    """Each device has a replica of the back; the cloud averages fronts and replicas with weights n_k/n each round.

    Equal to FedAvg on the unsplit model. Source: Thapa et al., AAAI 2022, Algorithm 1.
    """

    fronts = "averaged"

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of a replica of the back per device."""
        return Spec(self.path(Replicated))


class SplitFedV2(SplitStrategy):
    """Updates one back per edge by one device's upload after another in random order; averages only fronts.

    `order="step"`: draws the order of a step's uploads anew each step (the paper's Algorithm 1).
    `order="round"`: trains device after device, in an order drawn each round (the released code).
    """

    fronts = "averaged"

    def __init__(self, order: Literal["step", "round"] = "step"):
        super().__init__()
        self.order = one_of("order", order, ("step", "round"))

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of one back for the cohort."""
        return Spec(self.path(Sequential), {"order": self.order})


class SplitFedV3(SplitStrategy):
    """Like V1 for the backs, but each device keeps its own front (Gawali et al. 2020, arXiv 2012.12591)."""

    fronts = "private"

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of a replica of the back per device."""
        return Spec(self.path(Replicated))
