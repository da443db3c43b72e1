"""FedFly: devices that move between edge servers in the middle of a round (Ullah et al. 2022)."""

from fsl.strategies.splitfed import SplitFedV1

from fsl.errors import one_of
from fsl.mobility import ON_MOVE, OnMove


class FedFly(SplitFedV1):
    """SplitFed V1 over several edges whose devices move, as the run's mobility model says.

    `on_move="migrate"`: the device's session (its replica of the back, the optimizer's state, the cut gradient that
    it waits for) goes from edge to edge, and nobody computes anything again. "restart": the device begins its round
    again at the other edge, which is the paper's baseline. "drop": the device does not count in this round. Source:
    Ullah et al., IEEE Communications Magazine 2022, arXiv 2111.01516.
    """

    def __init__(self, on_move: OnMove = "migrate"):
        super().__init__()
        self.on_move = one_of("on_move", on_move, ON_MOVE)
