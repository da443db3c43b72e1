"""What a device does for its data's privacy in one round."""

from torch import Tensor

from fsl.plan import RoundPlan
from fsl.privacy.leakage import distance_correlation
from fsl.privacy.noise import Noise, noise_source
from fsl.privacy.settings import CutNoise, NoPeek, SegmentPrivacy


class DevicePrivacy:
    """One device's share of a round's privacy: its front's noise, and what happens to its smashed data.

    `noise` is None where the front is not trained privately.
    """

    def __init__(
        self,
        front: SegmentPrivacy | None,
        cut: CutNoise | None,
        nopeek: NoPeek | None,
        seed: int,
        round: int,
        device: int,
        secure: bool,
    ):
        self._front = front
        self._cut = cut
        where = {"device": device, "round": round}
        self.noise: Noise | None = None
        if front is not None:
            self.noise = noise_source(secure, seed, "dp-noise", segment="front", **where)
        self._cut_noise = noise_source(secure, seed, "cut-noise", **where)
        self._nopeek = nopeek

    def factors(self, front: Tensor, back: Tensor) -> Tensor:
        """What each sample's gradient (B,) is multiplied by so that front and back together obey one clip."""
        assert self._front is not None
        return joint_factors(self._front.clip, front, back.to(front))

    def clipped(self, smashed: Tensor) -> Tensor:
        """Smashed data (B, ...), each row at most as long as the clip; gradients pass through it."""
        if self._cut is None or not len(smashed):
            return smashed
        norms = smashed.flatten(1).norm(dim=1)
        factors = (self._cut.clip / (norms + 1e-6)).clamp(max=1.0)
        return smashed * factors.view(-1, *[1] * (smashed.dim() - 1))

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor | None:
        """What the front's loss has besides the edge's, a scalar; None where it has nothing."""
        if self._nopeek is None or len(smashed) < 2 or not smashed.requires_grad:
            return None
        return self._nopeek.weight * distance_correlation(inputs, smashed)

    def noised(self, smashed: Tensor, step: int) -> Tensor:
        """Smashed data as the edge sees them: with noise."""
        if self._cut is None or not self._cut.noise_multiplier:
            return smashed
        std = self._cut.noise_multiplier * self._cut.clip
        return smashed + std * self._cut_noise.normal(step)(smashed.shape).to(smashed)


def device_privacy(plan: RoundPlan, device: int, secure: bool) -> DevicePrivacy | None:
    """A device's share of a plan's privacy; None where it has none."""
    if plan.privacy is None:
        return None
    front = plan.privacy.segment("front", plan.batch_size)
    if front is None and plan.privacy.cut is None and plan.privacy.nopeek is None:
        return None
    return DevicePrivacy(front, plan.privacy.cut, plan.privacy.nopeek, plan.seed, plan.round, device, secure)


def joint_factors(clip: float, one: Tensor, other: Tensor) -> Tensor:
    """What each sample's gradient is multiplied by, from the squared norms (B,) of two segments; as Opacus rounds."""
    return (clip / ((one + other).sqrt() + 1e-6)).clamp(max=1.0)
