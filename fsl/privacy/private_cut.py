"""What privacy does to smashed data and cut gradients at a device's cut."""

from torch import Tensor

from fsl.codecs.codec import Codec, Payload
from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.device_cut import DeviceCut
from fsl.errors import ConfigError
from fsl.privacy.detector import Watch
from fsl.privacy.leakage import distance_correlation
from fsl.privacy.noise import Noise
from fsl.privacy.settings import CutNoise, NoPeek
from fsl.segments.finite import sound_rows
from fsl.segments.penalties import penalized
from fsl.segments.tensor_trees import Values


class PrivateCut(DeviceCut):
    """A device's end of the cut under privacy: clips and noises what leaves, penalizes its likeness to the inputs.

    `noise`: clips each row, and adds Gaussian noise drawn from `source`. `bounded`: a sample may decide nothing but its
    own share, so that a row that is not finite becomes zero (an edge would refuse it, and so tell of it). `nopeek`:
    NoPeek's loss (Vepakomma et al. 2020). `watch`: the device's watch on its edge.
    """

    def __init__(
        self,
        up: CutCodec | Codec,
        down: CutCodec | Codec,
        *,
        noise: CutNoise | None,
        source: Noise,
        bounded: bool = False,
        nopeek: NoPeek | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(up, down)
        self._noise = noise
        self._source = source
        self._bounded = bounded
        self._nopeek = nopeek
        self._watch = watch

    def leave(self, inputs: Values, smashed: Values) -> Tensor:
        """Clip the rows, and add NoPeek's gradient to what passes back through them."""
        inputs, smashed = _one(inputs, "the inputs are"), _one(smashed, "what crosses the cut is")
        if self._noise is not None:
            smashed = clipped(smashed, self._noise.clip)
        elif self._bounded and len(smashed):
            smashed = _one(sound_rows(smashed), "what crosses the cut is")
        if self._nopeek is None or len(smashed) < 2 or not smashed.requires_grad:
            return smashed
        return penalized(smashed, self._nopeek.weight * distance_correlation(inputs, smashed))

    def encode(self, step: int, smashed: Values, targets: Tensor, answered: bool = True) -> Payload:
        """Add the step's noise, then encode; the watch learns which labels the edge is told."""
        smashed = _one(smashed, "what crosses the cut is")
        if self._watch is not None:
            self._watch.note_labels(step, targets)
        if self._noise is not None:
            smashed = noised(smashed, self._noise, self._source, step)
        return super().encode(step, smashed, targets, answered)

    def decode(self, step: int, gradient: Payload) -> Tensor:
        """Decode, and show the gradient to the watch; HijackedError where it stops the device."""
        decoded = _one(super().decode(step, gradient), "the cut gradient is")
        if self._watch is not None:
            self._watch.look(step, decoded)
        return decoded


def _one(values: Values, what: str) -> Tensor:
    """Returns a tensor alone; ConfigError for several, which no clip of this room bounds together."""
    if isinstance(values, Tensor):
        return values
    raise ConfigError(
        f"privacy: {what} several tensors ({', '.join(values.names)}), and what privacy does at the cut is built for "
        "one; cut where one crosses, or leave privacy out"
    )


def clipped(smashed: Tensor, clip: float) -> Tensor:
    """Returns rows (B, ...), each at most as long as the clip; gradients pass through.

    Replaces a row without a finite norm, which no factor shortens, by zero.
    """
    if not len(smashed):
        return smashed
    norms = smashed.flatten(1).norm(dim=1)
    if not bool((finite := norms.detach().isfinite()).all()):
        smashed = smashed.masked_fill(~finite.view(-1, *[1] * (smashed.dim() - 1)), 0.0)
        norms = smashed.flatten(1).norm(dim=1)
    factors = (clip / (norms + 1e-6)).clamp(max=1.0)
    return smashed * factors.view(-1, *[1] * (smashed.dim() - 1))


def noised(smashed: Tensor, noise: CutNoise, source: Noise, step: int) -> Tensor:
    """Returns clipped rows (B, ...) with a step's Gaussian noise, of standard deviation noise_multiplier * clip."""
    if not noise.noise_multiplier:
        return smashed
    std = noise.noise_multiplier * noise.clip
    return smashed + std * source.normal(step)(smashed.shape).to(smashed)
