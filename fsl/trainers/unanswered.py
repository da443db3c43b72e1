"""A back per device that answers nothing: devices train by a loss of their own."""

from fsl.trainers.replicated import Replicated


class Decoupled(Replicated):
    """As `Replicated`, without cut gradients: none is computed, none is sent, and no device waits for one.

    Han et al. 2021, "Accelerating Federated Learning with Split Learning on Locally Generated Losses".
    """

    answers = False
    tails = False
    hops = False
    window = 0
