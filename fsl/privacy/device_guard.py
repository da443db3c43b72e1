"""What a device does for its data's privacy in one round."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fsl.data import Examples
from fsl.errors import WireError
from fsl.privacy.detector import Watch
from fsl.privacy.joint_clip import joint_factors
from fsl.privacy.leakage import distance_correlation, mutual_information
from fsl.privacy.noise import noise_source
from fsl.privacy.settings import Privacy, Probe, SegmentPrivacy
from fsl.segments.finite import sound_rows
from fsl.segments.learner import Learner
from fsl.segments.modes import evaluating

if TYPE_CHECKING:
    from fsl.privacy.private_learner import JointLearner

LEAKS = ("distance_correlation", "mutual_information")  # of inputs and smashed data


class DevicePrivacy:
    """One device's share of a round's privacy: what happens to its smashed data, and a clip over front and back."""

    def __init__(
        self,
        front: SegmentPrivacy | None,
        privacy: Privacy,
        seed: int,
        round: int,
        device: int,
        secure: bool,
    ):
        self._front = front
        self._cut = privacy.cut
        self._bounded = privacy.clipped
        where = {"device": device, "round": round}
        self._cut_noise = noise_source(secure, seed, "cut-noise", **where)
        self._nopeek = privacy.nopeek
        self.watch = None if privacy.detector is None else Watch(privacy.detector, device, round)

    def settle(self, front: Learner, back: Tensor | None) -> Tensor | None:
        """Make the step that the front put off where one clip is over front and back; None where there is none.

        Returns what each sample's gradient (B,) is multiplied by, which the edge is to be told. `back` is what the
        edge says of the squared norms (B,) over the back; WireError where it cannot be that.
        """
        if self._front is None or not self._front.joint:
            return None
        joint: JointLearner = front  # type: ignore[assignment]
        own = joint.norms
        if back is None or back.shape != own.shape or not back.isfinite().all() or (back < 0).any():
            raise WireError("the edge did not tell the norms over the back, which one clip over both segments needs")
        factors = joint_factors(self._front.clip, own, back.to(own))
        joint.settle(factors)
        return factors

    def clipped(self, smashed: Tensor) -> Tensor:
        """Smashed data (B, ...), each row at most as long as the clip; gradients pass through it.

        Where a sample decides about nothing but its own share, a row that is not finite is zero: an edge refuses one.
        """
        if self._cut is not None:
            return clipped(smashed, self._cut.clip)
        return sound_rows(smashed) if self._bounded and len(smashed) else smashed

    def penalty(self, inputs: Tensor, smashed: Tensor) -> Tensor | None:
        """What the front's loss has besides the edge's, a scalar; None where it has nothing."""
        if self._nopeek is None or len(smashed) < 2 or not smashed.requires_grad:
            return None
        return self._nopeek.weight * distance_correlation(inputs, smashed)

    def as_sent(self, smashed: Tensor, step: int = 0) -> Tensor:
        """Smashed data as the edge sees them: clipped, and with noise."""
        return self.noised(self.clipped(smashed), step)

    def noised(self, smashed: Tensor, step: int) -> Tensor:
        """Smashed data as the edge sees them: with noise."""
        if self._cut is None or not self._cut.noise_multiplier:
            return smashed
        std = self._cut.noise_multiplier * self._cut.clip
        return smashed + std * self._cut_noise.normal(step)(smashed.shape).to(smashed)


def clipped(smashed: Tensor, clip: float) -> Tensor:
    """Rows (B, ...), each at most as long as the clip; gradients pass through it.

    A row without a finite norm, which no factor shortens, is replaced by zero.
    """
    if not len(smashed):
        return smashed
    norms = smashed.flatten(1).norm(dim=1)
    if not bool((finite := norms.detach().isfinite()).all()):
        smashed = smashed.masked_fill(~finite.view(-1, *[1] * (smashed.dim() - 1)), 0.0)
        norms = smashed.flatten(1).norm(dim=1)
    factors = (clip / (norms + 1e-6)).clamp(max=1.0)
    return smashed * factors.view(-1, *[1] * (smashed.dim() - 1))


def _place(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def leaks(front: nn.Module, examples: Examples, probe: Probe, round: int, device: int = -1) -> dict[str, float]:
    """Distance correlation and mutual information of test inputs and what a front makes of them.

    Smashed data are as the edge sees them; `round` and `device` say which noise they get.
    """
    guard = DevicePrivacy(None, Privacy(cut=probe.cut), probe.seed, round, device, secure=False)
    smashed, inputs = [], []
    with evaluating(front), torch.no_grad():
        for rows in torch.arange(min(probe.rows, len(examples))).split(512):
            batch, _ = examples.batch(rows)
            inputs.append(batch)
            smashed.append(front(batch.to(_place(front))).cpu())
    one, other = torch.cat(inputs), guard.as_sent(torch.cat(smashed))
    return dict(zip(LEAKS, (float(distance_correlation(one, other)), mutual_information(one, other))))
