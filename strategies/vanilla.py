"""Vanilla split learning: devices in turn, the front relayed (Gupta & Raskar 2018; Vepakomma et al. 2018)."""

from typing import Literal

from fsl.strategies.split_strategy import SplitStrategy

from fsl.errors import one_of
from fsl.importing.spec import Spec
from fsl.trainers import Sequential


class VanillaSL(SplitStrategy):
    """Devices train one after another with one back; each starts from the front that the one before left.

    `order`: "fixed" goes by device id; "round" draws an order each round. The front's optimizer state does not pass
    along. With several edges each has its own relay, and the cloud averages their last fronts by examples.
    """

    fronts = "relayed"

    def __init__(self, order: Literal["fixed", "round"] = "fixed"):
        super().__init__()
        self.order = one_of("order", order, ("fixed", "round"))

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of one back for all devices, in turn."""
        return Spec(self.path(Sequential), {"order": self.order})
